"""What drafting ahead lives on: early picks, where in the target they are taken, and how many branches there are.

On the real pair of devices (bench/pair.py), one thing changed at a time around what MirrorConfig has by default, all in
turn in every repetition. A rate is over the default's of the same repetition. Hits: of all outcomes that branches were
asked for, those that one was at hand for, by what had made it a candidate.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import ended
from bench.cells import Cell, Subject
from bench.command import HELD_OUT, listed
from bench.metrics import rate
from bench.mirror import POOL_CORE, TARGET_CORE, shares
from bench.pair import PairEngine, paired
from bench.run import WARM_TOKENS, Oracle
from bench.stats import paired_ratio
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import depth, whole
from protocol.stats import MirrorStats
from targets.mirror import MirrorConfig

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/mirror_ablation.json"
PICTURE = machine.ROOT / "docs/mirror_ablation.png"
KAPPAS, FAN_OUTS = (0, 1, 2, 4, 8), (1, 2, 4, 8)
QUARTERS = {1: "1/4", 2: "1/2", 3: "3/4"}  # of the target's layers
SOURCES = {"full": "all accepted", "runner_up": "runner-up", "early_exit": "early exit", "rest": "rest of the window"}


@dataclass(frozen=True, slots=True)
class Point:
    """quarters: of the target's layers, after which the early picks are taken."""

    kappa: int = 8
    quarters: int = 2
    fan_out: int = 8

    def config(self, num_layers: int) -> MirrorConfig:
        return MirrorConfig(self.fan_out, self.kappa, num_layers * self.quarters // 4)


@dataclass(slots=True)
class Taken:
    """By repetition. identical: for every output."""

    rates: list[float] = field(default_factory=list)
    stats: list[MirrorStats] = field(default_factory=list)
    identical: list[bool] = field(default_factory=list)


DEFAULT = Point()
AXES = {
    "kappa": [Point(kappa=kappa) for kappa in KAPPAS],
    "quarters": [Point(quarters=quarters) for quarters in QUARTERS],
    "fan_out": [Point(fan_out=fan_out) for fan_out in FAN_OUTS],
}
TITLES = {"kappa": "early picks at a place (kappa)", "quarters": "exit layer", "fan_out": "branches (fan-out)"}


def star() -> list[Point]:
    """The default first, every point once."""
    return list(dict.fromkeys([DEFAULT, *(point for points in AXES.values() for point in points)]))


def play(engine: PairEngine, cell: Cell, workload: Workload, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All points of one temperature. engine: open."""
    taken = {point: Taken() for point in star()}
    groups = workload.groups(cell)
    texts = Oracle(engine, args.max_tokens).texts(cell, groups)
    for repetition in range(args.repeat + 1):  # the first is short, and only warms up
        for point, own in taken.items():
            engine.mirror = point.config(engine.model.decoder.config.num_layers)
            if repetition == 0:
                engine.run(cell, groups[0], min(args.max_tokens, WARM_TOKENS))
                engine.stats.clear()
                continue
            outcomes = [engine.run(cell, group, args.max_tokens) for group in groups]
            outputs = [output.token_ids for outcome in outcomes for output in outcome.outputs]
            own.rates.append(rate(outcomes, cell))
            own.stats += engine.stats.pop(cell)
            own.identical += [output == text for output, text in zip(outputs, texts, strict=True)]
    return [told(point, own, taken[DEFAULT], cell) for point, own in taken.items()]


def told(point: Point, own: Taken, default: Taken, cell: Cell) -> dict[str, Any]:
    num_rounds = max(sum(one.num_rounds for one in own.stats), 1)
    return asdict(point) | {
        "temperature": cell.temperature,
        "tokens_per_second": own.rates,
        "over_default": asdict(paired_ratio(own.rates, default.rates)),
        "hits": shares(own.stats),
        "branches_per_round": sum(one.num_branches for one in own.stats) / num_rounds,
        "tokens_per_round": sum(one.num_tokens for one in own.stats) / num_rounds,
        "identical": sum(own.identical) / len(own.identical),
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Hits by source above, a bar for each temperature; tokens/s over the default's below."""
    import matplotlib.pyplot as plt  # comes with the bench extra

    plt.switch_backend("Agg")
    figure, panels = plt.subplots(2, len(AXES), figsize=(11, 6), layout="constrained", sharey="row", sharex="col")
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    for column, (axis, points) in enumerate(AXES.items()):
        for number, temperature in enumerate(temperatures):
            found = [_row(rows, point, temperature) for point in points]
            shift = 0.8 / len(temperatures) * (number - (len(temperatures) - 1) / 2)
            _bars(panels[0][column], found, shift, 0.75 / len(temperatures), labelled=number == 0)
            _line(panels[1][column], found, f"temperature {temperature:g}")
        ticks = [QUARTERS.get(own.quarters, "") if axis == "quarters" else str(getattr(own, axis)) for own in points]
        panels[1][column].set_xticks(range(len(points)), ticks)
        panels[1][column].set_xlabel(TITLES[axis])
    left = ", ".join(f"{temperature:g}" for temperature in temperatures)
    panels[0][0].set_ylabel(f"share of outcomes at hand\n(bars: temperature {left})")
    panels[1][0].set_ylabel("tokens/s over the default's")
    panels[0][0].set_ylim(0, 1)
    for axes in panels.flat:
        axes.grid(alpha=0.3, axis="y")
    panels[0][-1].legend(fontsize="small")
    panels[1][-1].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Any, rows: Sequence[dict[str, Any]], shift: float, width: float, *, labelled: bool) -> None:
    places = [place + shift for place in range(len(rows))]
    bottom = [0.0] * len(rows)
    for colour, (source, name) in enumerate(SOURCES.items()):
        heights = [row["hits"][source] for row in rows]
        label = name if labelled else None
        axes.bar(places, heights, width, bottom=bottom, color=f"C{colour}", label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]


def _line(axes: Any, rows: Sequence[dict[str, Any]], label: str) -> None:
    ratios = [row["over_default"] for row in rows]
    middle = [ratio["median"] for ratio in ratios]
    spread = [[own["median"] - own["low"] for own in ratios], [own["high"] - own["median"] for own in ratios]]
    axes.errorbar(range(len(rows)), middle, yerr=spread, marker="o", capsize=3, label=label)


def _row(rows: Sequence[dict[str, Any]], point: Point, temperature: float) -> dict[str, Any]:
    wanted = asdict(point) | {"temperature": temperature}
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def table(made: dict[str, Any]) -> str:
    lines = [
        "| temperature | kappa | exit | fan-out | tok/s | over the default | hits | all accepted | runner-up "
        "| early exit | rest | branches a round | tokens in them |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in made["points"]:
        gain, hits = row["over_default"], row["hits"]
        by_source = " | ".join(f"{hits[name]:.2f}" for name in SOURCES)
        lines.append(
            f"| {row['temperature']:g} | {row['kappa']} | {QUARTERS[row['quarters']]} | {row['fan_out']} "
            f"| {median(row['tokens_per_second']):.0f} | {gain['median']:.3f} ({gain['low']:.3f}-{gain['high']:.3f}) "
            f"| {hits['all']:.2f} | {by_source} | {row['branches_per_round']:.1f} | {row['tokens_per_round']:.1f} |"
        )
    settings = made["settings"]
    identical = min(row["identical"] for row in made["points"])
    lines += [
        "",
        f"Target {made['target']} on one core, pool on another; batch 1, depth {settings['depth']}, length "
        f"{settings['length']}; one thing changed at a time. Identical to the plain loop: {identical:.0%} of outputs.",
        machine.footer(made["machine"]),
    ]
    return "\n".join(lines) + "\n"


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    os.sched_setaffinity(0, [TARGET_CORE])
    workload = Workload(read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target)), "mixed", args.num_prompts)
    subject = Subject(args.target, args.drafter, torch.bfloat16, 1, 1, LONGEST + args.max_tokens)
    cells = [Cell("mirror", 1, args.depth, args.length, temperature) for temperature in args.temperatures]
    with paired(subject, DEFAULT.config(1), [POOL_CORE]) as engine:
        return [row for cell in cells for row in play(engine, cell, workload, args)]


def run(args: argparse.Namespace) -> int:
    rows = measured(args)
    names = ("temperatures", "depth", "length", "repeat", "num_prompts", "max_tokens")
    made = {
        "machine": machine.describe(),
        "target": args.target.name,
        "settings": {name: getattr(args, name) for name in names},
        "points": rows,
    }
    machine.save(args.out, made, table(made))
    draw(rows, args.picture)
    sys.stdout.write(table(made))
    return 0 if all(row["identical"] == 1 for row in rows) else 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "large")
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--temperatures", type=listed(float), default=[0.0, 1.0])
    parser.add_argument("--depth", type=depth, default=2)
    parser.add_argument("--length", type=whole(1, 64), default=4)
    parser.add_argument("--repeat", type=whole(2), default=5, help="interleaved repetitions (default: %(default)s)")
    parser.add_argument("--num-prompts", type=whole(1), default=4)
    parser.add_argument("--max-tokens", type=whole(2), default=96)
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    return parser.parse_args(arguments)


def main() -> int:
    return ended("bench.ablation", run, parse())


if __name__ == "__main__":
    sys.exit(main())
