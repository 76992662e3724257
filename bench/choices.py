"""What the router would choose at every batch, for each target: depth and length from profile and surveyed acceptance.

No choice is measured here: it is what `draftpool plan` prints, batch by batch, with the acceptance of held-out prompts
in place of one that is given. The picture goes into the docs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.acceptance import Floats, acceptance_of, hazards_of, surveyed
from bench.arguments import ended
from bench.cells import Subject
from bench.command import HELD_OUT, listed
from bench.ours import DraftPoolEngine
from bench.workload import KINDS, LONGEST, Workload, read_texts
from cli.arguments import whole
from model.native.library import default_threads
from router.explain import options
from router.predict import Predictor
from router.tables import tables

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/choices.json"
PICTURE = machine.ROOT / "docs/choices.png"
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32)


@dataclass(frozen=True, slots=True)
class Choice:
    """depth 0: off. length: mean over the rows of the batch. over_off: foretold rate over that of plain decoding."""

    batch: int
    depth: int
    length: float
    tokens_per_second: float
    over_off: float


def choices(predictor: Predictor, hazards: Sequence[Floats], batches: Sequence[int], context: float) -> list[Choice]:
    """hazards: by rule, [length]."""
    made = []
    for batch in batches:
        found = options(predictor, hazards, batch, context, predictor.tables.length)
        chosen, off = next(one for one in found if one.chosen), next(one for one in found if one.rule is None)
        depth = chosen.rule.exits[-1] if chosen.rule else 0
        over = chosen.goodput / off.goodput
        made.append(Choice(batch, depth, fmean(chosen.lengths), round(chosen.goodput, 1), round(over, 3)))
    return made


def of_target(engine: DraftPoolEngine, workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """engine: open."""
    curves, config = engine.curves(), engine.choices()
    predictor = Predictor(tables(curves, config.rules, config.length, config.max_rows))
    told = surveyed(engine, workload, min(args.survey_batch, max(args.batch)), args.max_tokens)
    acceptance = acceptance_of(told, config.exits, config.length)
    hazards = [hazards_of(acceptance, exit_, config.length) for exit_ in config.exits]
    return {
        "hazards": {str(e): own.round(4).tolist() for e, own in zip(config.exits, hazards, strict=True)},
        "num_surveyed": sum(map(len, told)),
        "choices": [asdict(choice) for choice in choices(predictor, hazards, args.batch, args.context)],
    }


def draw(targets: dict[str, dict[str, Any]], path: Path) -> None:
    """Depth above, length below, a line for each target."""
    import matplotlib.pyplot as plt  # comes with the bench extra

    plt.switch_backend("Agg")
    figure, panels = plt.subplots(2, 1, figsize=(7, 5), layout="constrained", sharex=True)
    marks = zip(targets.items(), ("o", "s", "^", "v") * len(targets), strict=False)
    for (name, told), mark in marks:
        batches = [choice["batch"] for choice in told["choices"]]
        for axes, key in zip(panels, ("depth", "length"), strict=True):
            axes.plot(batches, [choice[key] for choice in told["choices"]], marker=mark, alpha=0.8, label=name)
    exits = sorted({int(exit_) for told in targets.values() for exit_ in told["hazards"]})
    panels[0].set_yticks([0, *exits], ["off", *map(str, exits)])
    _label(panels[0], "depth, layers")
    _label(panels[1], "length, tokens (mean of rows)")
    ticks = [1, 2, 4, 8, 16, 32]
    panels[1].set_xscale("log", base=2)
    panels[1].set_xticks(ticks, list(map(str, ticks)))
    panels[1].set_xlabel("batch")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _label(axes: Any, what: str) -> None:
    axes.set_ylabel(what)
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def table(made: dict[str, Any]) -> str:
    lines = ["| target | batch | depth | length | foretold, tok/s | over off |", "|---|---|---|---|---|---|"]
    for name, told in made["targets"].items():
        for own in told["choices"]:
            cells = (name, own["batch"], own["depth"] or "off", f"{own['length']:.1f}")
            lines.append(f"| {' | '.join(map(str, cells))} | {own['tokens_per_second']:.0f} | {own['over_off']:.2f} |")
    return "\n".join([*lines, "", machine.footer(made["machine"])]) + "\n"


def measured(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    for target in args.targets:
        rows = max(args.batch)
        subject = Subject(target, args.drafter, torch.bfloat16, args.threads, rows, LONGEST + args.max_tokens)
        texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(target))
        engine = DraftPoolEngine(subject)
        engine.open()
        try:
            yield target.name, of_target(engine, Workload(texts, args.workload, args.survey), args)
        finally:
            engine.close()


def run(args: argparse.Namespace) -> int:
    targets = dict(measured(args))
    settings = ("batch", "context", "survey", "max_tokens")
    made = {
        "machine": machine.describe(),
        "settings": {name: getattr(args, name) for name in settings},
        "targets": targets,
    }
    for path in (args.out, args.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(table(made), encoding="utf-8")
    draw(targets, args.picture)
    sys.stdout.write(table(made))
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=listed(Path), default=[MODELS / "large", MODELS / "small"])
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--batch", type=listed(whole(1)), default=list(BATCHES))
    parser.add_argument("--context", type=whole(1), default=256, help="tokens of each row (default: %(default)s)")
    parser.add_argument("--survey", type=whole(1), default=64, help="prompts that tell of the acceptance")
    parser.add_argument("--survey-batch", type=whole(1), default=16)
    parser.add_argument("--max-tokens", type=whole(2), default=128)
    parser.add_argument("--threads", type=whole(1), default=default_threads())
    parser.add_argument("--workload", choices=KINDS, default="mixed")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    return parser.parse_args(arguments)


def main() -> int:
    return ended("bench.choices", run, parse())


if __name__ == "__main__":
    sys.exit(main())
