"""The simulator against the measured machine: what it foretells of cells that it knows nothing of.

It is fed the step profile, made before anything is decoded, and how often drafts are accepted on half of the held-out
prompts; both it and the machine then decode the other half. Nothing is fitted to what is compared. A rate is that of
bench/metrics.py on both sides. From the same rounds: how well the profile foretells their parts (bench/parts.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.acceptance import acceptance_of, surveyed
from bench.arguments import ended
from bench.cells import Cell, Subject
from bench.command import HELD_OUT, listed
from bench.metrics import rate
from bench.ours import DraftPoolEngine
from bench.parts import Parts, WatchedEngine, parts_of, setting
from bench.workload import KINDS, LONGEST, Text, Workload, read_texts
from cli.arguments import whole
from deployments.local import depth_rule
from model.native.library import default_threads
from router.costs import CostCurves
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy
from router.simulate import simulate_cell
from router.simulate_acceptance import Profile, always

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/simulated.json"
OF_RATES, OF_ROUNDS = 0.15, 0.10  # median errors that are asked for
FIXED = ((2, 2), (2, 4), (4, 3), (6, 4))  # depth, length


@dataclass(frozen=True, slots=True)
class Compared:
    """Tokens per second of one cell; measured: the median over repetitions."""

    target: str
    cell: str
    batch: int
    measured: float
    simulated: float

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured


@dataclass(frozen=True, slots=True)
class Known:
    """All that the simulator is told of a target. profiles: by the length of the drafts that they were cut for."""

    curves: CostCurves
    choices: GoodputConfig
    profiles: dict[int, Profile]


def cells_of(args: argparse.Namespace) -> list[Cell]:
    return [
        cell
        for batch in args.batch
        for cell in (
            Cell("plain", batch),
            *(Cell("fixed", batch, depth, length) for depth, length in args.fixed),
            Cell("goodput", batch),
        )
    ]


def compare_target(target: Path, args: argparse.Namespace) -> tuple[list[Compared], list[Parts]]:
    sys.stderr.write(f"{target.name}\n")
    subject = Subject(target, args.drafter, torch.bfloat16, args.threads, max(args.batch), LONGEST + args.max_tokens)
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(target))
    engine = WatchedEngine(subject)
    engine.open()
    try:
        return compare(engine, texts, target.name, args)
    finally:
        engine.close()


def compare(
    engine: WatchedEngine, texts: tuple[Text, ...], target: str, args: argparse.Namespace
) -> tuple[list[Compared], list[Parts]]:
    """An open engine against the simulator. Every other text only tells of the acceptance."""
    cells, workload = cells_of(args), Workload(texts[1::2], args.workload, args.num_prompts)
    known = know(engine, Workload(texts[::2], args.workload, args.survey), args)
    rates = measured(engine, cells, workload, args)
    foretold = simulated(known, cells, workload, args)
    compared = [Compared(target, setting(cell), cell.batch, median(rates[cell]), foretold[cell]) for cell in cells]
    return compared, parts_of(target, known.curves, known.choices, engine.rounds)


def know(engine: DraftPoolEngine, others: Workload, args: argparse.Namespace) -> Known:
    """Before the cells are measured, from other prompts than theirs."""
    curves, choices = engine.adaptive.predictor.tables.curves, engine.choices()
    told = surveyed(engine, others, max(args.batch), args.max_tokens)
    lengths = {length for _, length in args.fixed} | {choices.length}
    return Known(curves, choices, {n: always(acceptance_of(told, choices.exits, n)) for n in lengths})


def measured(
    engine: WatchedEngine, cells: Sequence[Cell], workload: Workload, args: argparse.Namespace
) -> dict[Cell, list[float]]:
    """Tokens per second by repetition. The first pass over all cells is short and only warms up."""
    for cell in cells:
        engine.run(cell, workload.groups(cell)[0], min(args.max_tokens, 12))
    engine.rounds.clear()
    taken: dict[Cell, list[float]] = {cell: [] for cell in cells}
    for _ in range(args.repeat):
        for cell in cells:
            outcomes = [engine.run(cell, group, args.max_tokens) for group in workload.groups(cell)]
            taken[cell].append(rate(outcomes, cell))
    return taken


def simulated(known: Known, cells: Sequence[Cell], workload: Workload, args: argparse.Namespace) -> dict[Cell, float]:
    """Tokens per second over `seeds` repetitions, in the order of the machine's; one router for all cells."""
    adaptive = Goodput(known.curves, known.choices)
    totals = dict.fromkeys(cells, (0, 0.0))
    for seed in range(args.seeds):
        for cell in cells:
            profile = known.profiles[cell.length or known.choices.length]
            for number, group in enumerate(workload.groups(cell)):
                policy = policy_of(cell, adaptive, known.choices.exits)
                sizes = [len(prompt) for prompt in group]
                made = simulate_cell(
                    known.curves, policy, len(group), profile, sizes, args.max_tokens, seed=1000 * seed + number
                )
                tokens, ms = totals[cell]
                totals[cell] = (tokens + made.num_decoded, ms + made.decode_ms)
    return {cell: 1e3 * tokens / ms for cell, (tokens, ms) in totals.items()}


def policy_of(cell: Cell, adaptive: Goodput, exits: Sequence[int]) -> Policy:
    if cell.mode == "goodput":
        adaptive.restart()
        return adaptive
    return Fixed(depth_rule(exits, cell.depth), cell.length) if cell.speculates else Off()


def report(compared: Sequence[Compared], parts: Sequence[Parts], args: argparse.Namespace) -> dict[str, Any]:
    settings = ("batch", "fixed", "repeat", "seeds", "num_prompts", "survey", "max_tokens")
    worst = max(compared, key=lambda cell: abs(cell.ratio - 1))
    return {
        "machine": machine.describe(),
        "settings": {name: getattr(args, name) for name in settings},
        "asked": {"median_error_of_rates": OF_RATES, "median_error_of_rounds": OF_ROUNDS},
        "median_error_of_rates": median(abs(cell.ratio - 1) for cell in compared),
        "worst_cell": asdict(worst) | {"ratio": worst.ratio},
        "median_error_of_rounds": median(own.error for own in parts),
        "median_error_of_rounds_corrected": median(own.corrected for own in parts),
        "cells": [asdict(cell) | {"ratio": cell.ratio} for cell in compared],
        "rounds": [asdict(own) for own in parts],
    }


def table(compared: Sequence[Compared], parts: Sequence[Parts], made: dict[str, Any]) -> str:
    worst = made["worst_cell"]
    lines = ["| target | batch | setting | measured, tok/s | simulated | ratio |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {one.target} | {one.batch} | {one.cell} | {one.measured:.0f} | {one.simulated:.0f} | {one.ratio:.2f} |"
        for one in compared
    ]
    lines += [
        "",
        f"Median error {made['median_error_of_rates']:.1%} (asked {OF_RATES:.0%}), worst cell {worst['target']}, batch "
        f"{worst['batch']}, {worst['cell']}: {worst['ratio']:.2f}.",
        "",
        "What the profile alone says of a round over what it took, medians; the error of a whole round by the profile, "
        "and with what was learned online from other rounds.",
        "",
        "| target | batch | setting | draft | verify | rest | round | error | corrected |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for own in parts:
        draft = "" if own.draft is None else f"{own.draft:.2f}"
        ratios = f"{draft} | {own.verify:.2f} | {own.rest:.2f} | {own.total:.2f}"
        lines.append(f"| {own.target} | {own.batch} | {own.cell} | {ratios} | {own.error:.1%} | {own.corrected:.1%} |")
    lines += [
        "",
        f"Median over cells {made['median_error_of_rounds']:.1%} by the profile alone, "
        f"{made['median_error_of_rounds_corrected']:.1%} corrected (asked {OF_ROUNDS:.0%}).",
        machine.footer(made["machine"]),
    ]
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> int:
    compared: list[Compared] = []
    parts: list[Parts] = []
    for target in args.targets:
        cells, rounds = compare_target(target, args)
        compared += cells
        parts += rounds
    made = report(compared, parts, args)
    machine.save(args.out, made, table(compared, parts, made))
    sys.stdout.write(table(compared, parts, made))
    good = made["median_error_of_rates"] <= OF_RATES and made["median_error_of_rounds_corrected"] <= OF_ROUNDS
    return 0 if good else 1


def arm(text: str) -> tuple[int, int]:
    """As 4/3: depth and length."""
    depth, _, length = text.partition("/")
    return whole(1)(depth), whole(1, 64)(length)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=listed(Path), default=[MODELS / "large", MODELS / "small"])
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--batch", type=listed(whole(1)), default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--fixed", type=listed(arm), default=list(FIXED), help="depth/length,...")
    parser.add_argument("--repeat", type=whole(2), default=2, help="of the cells (default: %(default)s)")
    parser.add_argument("--seeds", type=whole(1), default=6, help="of simulated texts (default: %(default)s)")
    parser.add_argument("--num-prompts", type=whole(1), default=8, help="of a cell, at the least")
    parser.add_argument("--survey", type=whole(1), default=64, help="other prompts, for the acceptance")
    parser.add_argument("--max-tokens", type=whole(2), default=96)
    parser.add_argument("--threads", type=whole(1), default=default_threads())
    parser.add_argument("--workload", choices=KINDS, default="mixed")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def main() -> int:
    return ended("bench.simulated", run, parse())


if __name__ == "__main__":
    sys.exit(main())
