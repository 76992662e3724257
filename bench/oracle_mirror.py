"""Mirror against its law: a drafter that is right as often as it is told, at a price that it is told.

    target     a demo target on a slowed device: a pass takes the same time whatever it verifies
    drafter    the oracle (bench/oracle_pool.py): acceptance, and the cost of a token as a share of a pass
    in turn    draft, then verify, at the length that pays best in turn by the formula of Leviathan et al. (2023)
    mirror     the same length; foreseen: the share of outcomes that a branch was asked for
    law        router/law.py for what rounds in turn took and the share that was foreseen; in mirror branches begin
               behind the drafter's own next token, so drafting takes the lead and the window:
               max(verify, lead + draft + link) + (1 - foreseen) (draft + link) + rest
               beside it as if there were no lead

Both devices sleep, so both overlap on any machine. A pool drafts the text that it knows, so rounds are the same in both
modes and the speed-up is one of time alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import ended
from bench.cells import Cell, Subject, TokenIds
from bench.command import HELD_OUT, listed
from bench.metrics import CellResult
from bench.mirror import shares
from bench.oracle import KnownText, OracleDrafter, Ranking
from bench.oracle_pool import OraclePool
from bench.ours import requests
from bench.pair import PairEngine
from bench.run import Engines, measure
from bench.slowed import Device, slowed_target
from bench.stats import paired_ratio
from bench.workload import EQUAL, Workload, read_texts
from cli.arguments import whole
from link.discovery import PoolMember
from protocol.branch import MirrorClient
from protocol.stats import PoolStats
from router.law import Law
from targets import plain
from targets.mirror import MirrorConfig
from targets.model import ForwardRow

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/oracle_mirror.json"
ASKED = 0.15  # how far off the law a speed-up may be
DEPTH = 1  # the oracle's only exit
BEYOND = 16  # tokens that the oracle knows behind the last that is asked for
FAN_OUT = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """cost: of drafting a token, as a share of a verifying pass."""

    acceptance: float
    cost: float
    length: int


@dataclass(slots=True)
class Foreseen:
    num_outcomes: int = 0
    num_foreseen: int = 0

    @property
    def share(self) -> float:
        return self.num_foreseen / max(self.num_outcomes, 1)


@dataclass(slots=True)
class Scene:
    """A setting as it is played."""

    setting: Setting
    ranking: Ranking
    device: Device
    foreseen: Foreseen = field(default_factory=Foreseen)


class OracleEngine(PairEngine):
    """A slowed target, and the oracle in place of a pool; the plain text is made at full speed."""

    def __init__(self, subject: Subject, verify_ms: float) -> None:
        """subject: without a drafter."""
        member = PoolMember("", "oracle", (DEPTH,), "", subject.max_length, 0, PoolStats(0, 0, 0, 0, 0, 0, 0, 0.0))
        super().__init__(subject, member, MirrorConfig(FAN_OUT, kappa=0))
        self.scene: Scene | None = None
        self.device = Device(f"{verify_ms:g} ms a pass")
        self.verify_ms = verify_ms
        self._known: list[KnownText] = []

    def open(self) -> None:
        super().open()
        self._quick = self.model
        self._model = slowed_target(self._quick, self.device, self._pass_ms)

    def know(self, workload: Workload, max_tokens: int) -> None:
        """Makes the text of every prompt that cells of batch 1 will run."""
        prompts = [prompt for group in workload.groups(Cell("mirror", 1)) for prompt in group]
        for prompt in prompts:
            (request,) = requests([prompt], 0.0, max_tokens + BEYOND)
            text = self.oracle(prompt, 0.0, 0, max_tokens + BEYOND)
            self._known.append(KnownText(prompt, request.sampling, text))

    def oracle(self, prompt: TokenIds, temperature: float, seed: int, max_tokens: int) -> tuple[int, ...]:
        (request,) = requests([prompt], temperature, max_tokens)
        return tuple(plain.generate(self._quick, request).tokens[len(prompt) :])

    def play(self, scene: Scene) -> None:
        """What the next cells are measured with."""
        self.scene = scene
        for kept in (self.rounds, self.stats, self.records):
            kept.clear()

    def _pass_ms(self, rows: Sequence[ForwardRow]) -> float:
        return self.verify_ms

    @contextmanager
    def _client(self, incarnation: str) -> Iterator[MirrorClient]:
        assert self.scene is not None, "play a scene first"
        scene = self.scene
        drafter = OracleDrafter(self._known, scene.ranking)
        with OraclePool(drafter, scene.device, scene.setting.cost * self.verify_ms) as pool:
            yield pool
        scene.foreseen.num_outcomes += pool.num_outcomes
        scene.foreseen.num_foreseen += pool.num_foreseen


def settings_of(args: argparse.Namespace) -> list[Setting]:
    return [Setting(a, c, best_length(a, c, args.longest)) for a in args.acceptance for c in args.cost]


def best_length(acceptance: float, cost: float, longest: int) -> int:
    """Where a round in turn commits most per second, verification costing 1 (Leviathan et al. 2023, theorem 3.8)."""

    def gain(length: int) -> float:
        return sum(acceptance**n for n in range(length + 1)) / (1 + cost * length)

    return max(range(1, longest + 1), key=gain)


def compare(engine: OracleEngine, setting: Setting, workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """engine: open, and it knows the workload's texts."""
    vocab_size = engine.model.decoder.config.vocab_size
    ranking = Ranking({DEPTH: setting.acceptance}, args.runner_up, vocab_size, args.seed)
    scene = Scene(setting, ranking, Device(f"{setting.cost * args.verify_ms:g} ms a token"))
    engine.play(scene)
    turn, mirror = (Cell(mode, 1, DEPTH, setting.length) for mode in ("fixed", "mirror"))
    engines = Engines(engine, dict.fromkeys(("fixed", "mirror"), engine))
    results = measure(engines, [turn, mirror], workload, repeat=args.repeat, max_tokens=args.max_tokens)
    return told(engine, scene, {result.cell: result for result in results}, turn, mirror)


def told(
    engine: OracleEngine, scene: Scene, results: dict[Cell, CellResult], turn: Cell, mirror: Cell
) -> dict[str, Any]:
    setting, hits = scene.setting, shares(engine.stats[mirror])
    gain = paired_ratio(results[mirror].tokens_per_second, results[turn].tokens_per_second)
    token_ms = setting.cost * engine.verify_ms
    parts = {cell: parts_of(engine, cell) for cell in (turn, mirror)}
    law = Law(**parts[turn], hits=scene.foreseen.share)
    expected = with_lead(law, token_ms)
    waited = sum(one.num_waits for one in engine.stats[mirror])
    return asdict(setting) | {
        "rates": {
            "in turn": median(results[turn].tokens_per_second),
            "mirror": median(results[mirror].tokens_per_second),
        },
        "tokens_per_round": [results[cell].mean_acceptance_length for cell in (turn, mirror)],
        "speedup": asdict(gain),
        "law": expected,
        "over_law": gain.median / expected,
        "law_without_lead": law.speedup,
        "rounds": {"in turn": parts[turn], "mirror": parts[mirror]},
        "link_ms": median(one.draft_ms for one in engine.rounds[turn] if one.draft_ms) - setting.length * token_ms,
        "foreseen": scene.foreseen.share,
        "hits": hits,
        "num_waits_per_round": waited / max(sum(one.num_rounds for one in engine.stats[mirror]), 1),
        "late": scene.device.num_late / max(scene.device.num_steps, 1),
        "identical": min(result.identical or 0.0 for result in results.values()),
    }


def with_lead(law: Law, lead_ms: float) -> float:
    """The speed-up when branches begin behind the drafter's own next token, which is drafted ahead as they are."""
    ahead_ms = max(law.verify_ms, lead_ms + law.wait_ms)
    return law.in_turn_ms / (ahead_ms + (1 - law.hits) * law.wait_ms + law.rest_ms)


def parts_of(engine: PairEngine, cell: Cell) -> dict[str, float]:
    """Of rounds that decoded, medians; the wait is a mean, since in mirror most rounds have none."""
    rounds = [one for one in engine.rounds[cell] if one.rows and not one.num_prefill_tokens]
    return {
        "verify_ms": median(one.verify_ms for one in rounds),
        "wait_ms": fmean(one.draft_ms for one in rounds),
        "rest_ms": median(one.rest_ms for one in rounds),
    }


def report(cells: Sequence[dict[str, Any]], engine: OracleEngine, args: argparse.Namespace) -> dict[str, Any]:
    names = ("verify_ms", "runner_up", "seed", "longest", "repeat", "num_prompts", "max_tokens")
    off = [abs(cell["over_law"] - 1) for cell in cells]
    return {
        "machine": machine.describe(),
        "target": args.target.name,
        "settings": {name: getattr(args, name) for name in names},
        "asked": ASKED,
        "off_the_law": {"median": median(off), "worst": max(off)},
        "late": engine.device.num_late / max(engine.device.num_steps, 1),
        "cells": list(cells),
    }


def table(made: dict[str, Any]) -> str:
    lines = [
        "| acceptance | a token over a pass | length | in turn, tok/s | mirror | speed-up | law | over the law "
        "| without the lead | foreseen | in time |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in made["cells"]:
        gain, rates = cell["speedup"], cell["rates"]
        lines.append(
            f"| {cell['acceptance']:g} | {cell['cost']:.0%} | {cell['length']} | {rates['in turn']:.1f} "
            f"| {rates['mirror']:.1f} | {gain['median']:.3f} ({gain['low']:.3f}-{gain['high']:.3f}) "
            f"| {cell['law']:.3f} | {cell['over_law']:.3f} | {cell['law_without_lead']:.3f} | {cell['foreseen']:.2f} "
            f"| {cell['hits']['all']:.2f} |"
        )
    off, settings = made["off_the_law"], made["settings"]
    identical = min(cell["identical"] for cell in made["cells"])
    lines += [
        "",
        f"Off the law: median {off['median']:.1%}, worst {off['worst']:.1%} (asked {made['asked']:.0%}). Target "
        f"{made['target']} on a slowed device of {settings['verify_ms']:g} ms a pass, {made['late']:.1%} of its steps "
        f"late, prompts included; when the oracle errs its runner-up is right in {settings['runner_up']:.0%} of all "
        f"cases. Batch 1, temperature 0. Identical to the plain loop: {identical:.0%} of outputs.",
        machine.footer(made["machine"]),
    ]
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> int:
    subject = Subject(args.target, None, torch.bfloat16, 1, 1, EQUAL + args.max_tokens + BEYOND)
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target))
    workload = Workload(texts, "equal", args.num_prompts)
    engine = OracleEngine(subject, args.verify_ms)
    engine.open()
    cells: list[dict[str, Any]] = []
    try:
        engine.know(workload, args.max_tokens)
        for setting in settings_of(args):
            cells.append(compare(engine, setting, workload, args))
            made = report(cells, engine, args)
            machine.save(args.out, made, table(made))
    finally:
        engine.close()
    sys.stdout.write(table(made))
    return 0 if made["off_the_law"]["worst"] <= ASKED else 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "small")
    parser.add_argument("--acceptance", type=listed(float), default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--cost", type=listed(float), default=[0.05, 0.1, 0.2, 0.4], help="a token over a pass")
    parser.add_argument("--runner-up", type=float, default=0.6, help="right where the oracle errs (default: 0.6)")
    parser.add_argument("--verify-ms", type=float, default=20.0, help="of a pass (default: %(default)s)")
    parser.add_argument("--longest", type=whole(1, FAN_OUT - 2), default=6, help="length (default: %(default)s)")
    parser.add_argument("--repeat", type=whole(2), default=2, help="interleaved repetitions (default: %(default)s)")
    parser.add_argument("--num-prompts", type=whole(1), default=2)
    parser.add_argument("--max-tokens", type=whole(2), default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the oracle's errors")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def main() -> int:
    return ended("bench.oracle_mirror", run, parse())


if __name__ == "__main__":
    sys.exit(main())
