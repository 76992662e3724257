"""A case in which the deepest exit is the best one, and whether the router finds it.

On slowed devices (bench/slowed.py): a pass of the target is dear, a token of the drafter costs much the same at every
depth, as where each step is a launch and layers are narrow. So long drafts pay, and in long drafts what a deeper exit
gets right adds up; the prompts are some on which it gets more right than on most. All depths and lengths compete, then
the best one is measured anew beside the router.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import ended
from bench.cells import Cell, Subject, TokenIds
from bench.command import HELD_OUT, listed
from bench.grid import Grid
from bench.ours import DraftPoolEngine, requests
from bench.pressure import Devices
from bench.run import Engines, measure
from bench.slowed import Device, SlowedDrafter, slowed_target
from bench.stats import best, paired_ratio
from bench.workload import EQUAL, LONGEST, Workload, read_texts
from cli.arguments import depth, whole
from cli.plan_command import lengths
from drafters.limits import PoolLimits
from drafters.worker import DraftWorker
from model.native.library import default_threads
from router.costs import CostCurves
from router.explain import Option, options, rule_name
from targets import plain

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/deeper.json"
OF_BEST = 0.95
DEVICES = Devices(verify=100.0, token=0.02, step=3.0, layer=0.02, row_layer=0.0)


class SlowedEngine(DraftPoolEngine):
    """Ours on slowed devices; the oracle's text is made at full speed."""

    def __init__(self, subject: Subject, devices: Devices) -> None:
        super().__init__(subject)
        self._devices = devices
        self.slowed = {"target": Device(devices.label), "drafter": Device(devices.label)}

    def open(self) -> None:
        super().open()
        assert self._drafter is not None, "a case of drafting needs a drafter"
        self._quick = self.model
        self._model = slowed_target(self._quick, self.slowed["target"], self._devices.verify_ms)
        drafter = SlowedDrafter(self._drafter, self.slowed["drafter"], self._devices.draft_ms)
        self._worker = DraftWorker(drafter, PoolLimits(max_rows=self._subject.max_batch), time.monotonic)

    def curves(self) -> CostCurves:
        return self._devices.curves(self.worker.describe().exits)

    def oracle(self, prompt: TokenIds, temperature: float, seed: int, max_tokens: int) -> tuple[int, ...]:
        (request,) = requests([prompt], temperature, max_tokens)
        return tuple(plain.generate(self._quick, request).tokens[len(prompt) :])

    @property
    def late(self) -> dict[str, float]:
        """Share of steps that took longer than their device was given."""
        return {name: device.num_late / max(device.num_steps, 1) for name, device in self.slowed.items()}


def run_case(engine: SlowedEngine, workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """engine: open."""
    engines, batch = Engines(engine, dict.fromkeys(("fixed", "goodput"), engine)), args.batch
    cells = Grid(("fixed",), [batch], args.depths, args.lengths).cells()
    swept = measure(engines, cells, workload, repeat=args.sweep, max_tokens=args.max_tokens)
    fixed = {result.cell: result.tokens_per_second for result in swept}
    chosen = best(fixed)
    cells = [chosen, Cell("goodput", batch)]
    theirs, ours = measure(engines, cells, workload, repeat=args.pairs, max_tokens=args.max_tokens)
    played = engine.adaptive.played()
    drafting = {name: share for name, share in played.items() if name != "off"}
    deepest = max(engine.worker.describe().exits)
    return {
        "batch": batch,
        "rates": {_name(cell): round(median(rates), 1) for cell, rates in fixed.items()},
        "best_fixed": _name(chosen),
        "deepest_wins": chosen.depth == deepest,
        "best_fixed_rate": round(median(theirs.tokens_per_second), 1),
        "goodput_rate": round(median(ours.tokens_per_second), 1),
        "over_best_fixed": asdict(paired_ratio(ours.tokens_per_second, theirs.tokens_per_second)),
        "played": played,
        "share_at_deepest": _share(drafting, deepest),
        "identical": min(result.identical or 0.0 for result in (*swept, theirs, ours)),
        "late": engine.late,
        "plan": explained(engine, args),
    }


def explained(engine: SlowedEngine, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What `draftpool plan` would print of this case, with the acceptance that the router has learned."""
    adaptive = engine.adaptive
    length = adaptive.config.length
    hazards = [adaptive.acceptance.hazards(number) for number in range(len(adaptive.config.rules))]
    found = options(adaptive.predictor, hazards, args.batch, EQUAL + args.max_tokens / 2, length)
    return [_row(one) for one in found if one.rule is None or one.budget or one.lengths[0] in (*args.lengths, length)]


def _row(option: Option) -> dict[str, Any]:
    cost = {name: round(ms, 2) for name, ms in asdict(option.cost).items()}
    told = {"arm": rule_name(option.rule), "length": lengths(option), **cost, "tokens": round(option.tokens, 2)}
    return told | {"tokens_per_second": round(option.goodput, 1), "chosen": option.chosen}


def _share(drafting: dict[str, float], deepest: int) -> float:
    """Of the rounds that drafted, those at the deepest exit."""
    at = sum(share for name, share in drafting.items() if name.startswith(f"{deepest}/"))
    return at / sum(drafting.values()) if drafting else 0.0


def _name(cell: Cell) -> str:
    return f"{cell.depth}/{cell.length}"


def table(made: dict[str, Any]) -> str:
    case, ratio = made["case"], made["case"]["over_best_fixed"]
    rates = case["rates"]
    lines = [
        f"{made['devices']}; {made['target']}, batch {case['batch']}.",
        "",
        f"| {' | '.join(rates)} |",
        f"|{'---|' * len(rates)}",
        f"| {' | '.join(f'{tokens_per_second:.0f}' for tokens_per_second in rates.values())} |",
        "",
        f"Best fixed: {case['best_fixed']}. The router: {ratio['median']:.3f} of it ({ratio['low']:.3f}-"
        f"{ratio['high']:.3f}), {case['share_at_deepest']:.0%} of its drafts at the deepest exit. Identical to the "
        f"plain loop: {case['identical']:.0%} of outputs. Steps late: {max(case['late'].values()):.1%}.",
        "",
        "What `draftpool plan` says of it, in ms a round:",
        "",
        "| | arm | length | draft | verify | other | tokens | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in case["plan"]:
        costs = f"{row['draft_ms']} | {row['verify_ms']} | {row['other_ms']}"
        mark = "→" if row["chosen"] else ""
        told = f"{row['tokens']} | {row['tokens_per_second']}"
        lines.append(f"| {mark} | {row['arm']} | {row['length']} | {costs} | {told} |")
    return "\n".join([*lines, "", machine.footer(made["machine"])]) + "\n"


def run(args: argparse.Namespace) -> int:
    subject = Subject(args.target, args.drafter, torch.bfloat16, args.threads, args.batch, LONGEST + args.max_tokens)
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target))
    workload = Workload(texts[args.first :], "equal", args.batch)
    engine = SlowedEngine(subject, DEVICES)
    engine.open()
    try:
        case = run_case(engine, workload, args)
    finally:
        engine.close()
    made = {"machine": machine.describe(), "devices": f"slowed devices, {DEVICES.label}", "target": args.target.name}
    made |= {
        "settings": {name: getattr(args, name) for name in ("sweep", "pairs", "max_tokens", "first")},
        "case": case,
    }
    machine.save(args.out, made, table(made))
    sys.stdout.write(table(made))
    return 0 if case["deepest_wins"] and case["over_best_fixed"]["median"] >= OF_BEST else 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "large")
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--batch", type=whole(1), default=8)
    parser.add_argument("--first", type=whole(0), default=8, help="of the held-out prompts (default: %(default)s)")
    parser.add_argument("--depths", type=listed(depth), default=[2, 4, 6])
    parser.add_argument("--lengths", type=listed(whole(1, 64)), default=[8, 12])
    parser.add_argument("--sweep", type=whole(1), default=1, help="repetitions of the sweep (default: %(default)s)")
    parser.add_argument("--pairs", type=whole(2), default=4, help="interleaved repetitions (default: %(default)s)")
    parser.add_argument("--max-tokens", type=whole(2), default=96)
    parser.add_argument("--threads", type=whole(1), default=default_threads())
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def main() -> int:
    return ended("bench.deeper", run, parse())


if __name__ == "__main__":
    sys.exit(main())
