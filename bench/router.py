"""The router against every fixed setting, cell by cell: one table, one run.

For each target and batch all depths and lengths compete in a sweep; the winner is measured anew beside plain decoding
and the router's own choice, in interleaved repetitions. What the sweep found for each fixed setting over all cells
stands for what an operator could have fixed once and for all. A batch that starts together runs empty unevenly where
drafts are long, for easy texts end early; `--kept-full` refills its slots, as a server does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import MODELS, add_sweep, add_threads, ended, measuring
from bench.cells import Cell, Subject
from bench.command import listed
from bench.grid import Grid
from bench.metrics import CellResult
from bench.run import Engines, measure, opened
from bench.stats import Bar, Ratio, best, paired_ratio
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import whole

RESULT = machine.ROOT / "bench/results/router.json"
OF_BEST, OF_OFF = 0.95, 0.98  # what the router has to reach in every cell
Fixed = tuple[int | str | None, int]  # depth, length


@dataclass(frozen=True, slots=True)
class Measured:
    """One target and batch. fixed: tokens per second of every setting in the sweep, over plain decoding there.

    share_of_best, share_of_off: the router's tokens per second over theirs, measured anew. played: its rounds by
    "depth/length", the most frequent first.
    """

    target: str
    batch: int
    best: Fixed
    plain: float
    best_fixed: float
    goodput: float
    share_of_best: Ratio
    share_of_off: Ratio
    fixed: dict[str, float]
    identical: float
    played: dict[str, float]


def measure_target(target: Path, args: argparse.Namespace) -> Iterator[Measured]:
    subject = Subject(target, args.drafter, torch.bfloat16, args.threads, max(args.batch), LONGEST + args.max_tokens)
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(target))
    with opened(subject, ("plain", "fixed", "goodput")) as engines:
        for batch in args.batch:
            workload = Workload(texts, "mixed", max(batch, args.num_prompts))
            yield measure_batch(engines, workload, target.name, batch, args)


def measure_batch(engines: Engines, workload: Workload, target: str, batch: int, args: argparse.Namespace) -> Measured:
    sys.stderr.write(f"{target}, batch {batch}\n")
    grid = Grid(("plain", "fixed"), [batch], args.depths, args.lengths, kept_full=args.kept_full)
    queue = args.kept_full * batch
    swept = measure(
        engines,
        [cell for cell in grid.cells() if cell.queue == queue],
        workload,
        repeat=args.sweep,
        max_tokens=args.max_tokens,
    )
    fixed = {result.cell: result.tokens_per_second for result in swept if result.mode == "fixed"}
    chosen, plain = best(fixed), next(result for result in swept if result.mode == "plain")
    adaptive = engines.ours.adaptive
    cells = [Cell("plain", batch, queue=queue), chosen, Cell("goodput", batch, queue=queue)]
    results = measure(engines, cells, workload, repeat=args.pairs, max_tokens=args.max_tokens)
    by_mode = {result.mode: result for result in results}
    ours = by_mode["goodput"]
    return Measured(
        target=target,
        batch=batch,
        best=(chosen.depth, chosen.length),
        plain=median(by_mode["plain"].tokens_per_second),
        best_fixed=median(by_mode["fixed"].tokens_per_second),
        goodput=median(ours.tokens_per_second),
        share_of_best=_over(ours, by_mode["fixed"]),
        share_of_off=_over(ours, by_mode["plain"]),
        fixed={_name(cell): paired_ratio(rates, plain.tokens_per_second).median for cell, rates in fixed.items()},
        identical=min(result.identical or 0.0 for result in results),
        played=adaptive.played(),
    )


def bars(cells: Sequence[Measured]) -> list[Bar]:
    """Of each cell, and over all of them the router against every single fixed setting."""
    made = []
    for cell in cells:
        name = f"{cell.target}, batch {cell.batch}"
        depth_, length = cell.best
        made.append(Bar(f"{name}: over the best fixed", "at least", OF_BEST, cell.share_of_best, f"{depth_}/{length}"))
        made.append(Bar(f"{name}: over off", "at least", OF_OFF, cell.share_of_off))
    return made


def against_each(cells: Sequence[Measured]) -> dict[str, float]:
    """The router's speed-up over plain, over that of each fixed setting: geometric means over the cells."""
    ours = fmean(log(cell.share_of_off.median) for cell in cells)
    names = list(cells[0].fixed)
    return {name: exp(ours - fmean(log(cell.fixed[name]) for cell in cells)) for name in names}


def report(cells: Sequence[Measured], args: argparse.Namespace) -> dict[str, Any]:
    settings = ("pairs", "sweep", "num_prompts", "max_tokens", "depths", "lengths", "batch", "kept_full")
    return {
        "machine": machine.describe(),
        "settings": {name: getattr(args, name) for name in settings},
        "cells": [asdict(cell) for cell in cells],
        "against_each_fixed": against_each(cells),
        "bars": [bar.as_json() for bar in bars(cells)],
    }


def table(cells: Sequence[Measured], made: dict[str, Any]) -> str:
    lines = [
        "| target | batch | off, tok/s | best fixed | tok/s | router, tok/s | over best fixed | over off | plays |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        depth_, length = cell.best
        plays = ", ".join(f"{name} {share:.0%}" for name, share in list(cell.played.items())[:3])
        lines.append(
            f"| {cell.target} | {cell.batch} | {cell.plain:.0f} | {depth_}/{length} | {cell.best_fixed:.0f} "
            f"| {cell.goodput:.0f} | {_ratio(cell.share_of_best)} | {_ratio(cell.share_of_off)} | {plays} |"
        )
    each = made["against_each_fixed"]
    closest = min(each, key=lambda name: each[name])
    place = made["machine"]
    lines += [
        "",
        f"Over all cells the router gives {each[closest]:.3f}x the closest single setting ({closest}), geometric mean "
        f"of speed-ups over plain; {sum(ratio > 1 for ratio in each.values())} of {len(each)} settings are beaten.",
        f"Identical to the plain loop: {min(cell.identical for cell in cells):.0%} of outputs.",
        f"{machine.hardware(place)}; commit {place['commit']}; `{place['command']}`.",
    ]
    return "\n".join(lines) + "\n"


def _over(ours: CellResult, theirs: CellResult) -> Ratio:
    return paired_ratio(ours.tokens_per_second, theirs.tokens_per_second)


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _name(cell: Cell) -> str:
    return f"{cell.depth}/{cell.length}"


def run(args: argparse.Namespace) -> int:
    cells: list[Measured] = []
    for target in args.targets:
        for cell in measure_target(target, args):
            cells.append(cell)
            made = report(cells, args)
            machine.save(args.out, made, table(cells, made))
    sys.stdout.write(table(cells, report(cells, args)))
    return 0 if all(bar.met for bar in bars(cells)) and min(against_each(cells).values()) > 1 else 1


def main() -> int:
    parser = measuring(__doc__, out=RESULT)
    parser.add_argument("--targets", type=listed(Path), default=[MODELS / "large", MODELS / "small"])
    parser.add_argument("--batch", type=listed(whole(1)), default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--kept-full", type=whole(0), default=0, help="batches that wait, so that no slot is empty")
    add_sweep(parser, repeat=3)
    add_threads(parser)
    return ended("bench.router", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
