"""Question: at each batch, does the router reach the best fixed setting, off, and the other policies that choose?

For each target and batch all depths and lengths compete in a sweep; the winner is measured anew beside plain decoding
and the policies that choose by themselves, in interleaved repetitions. What the sweep found for each fixed setting over
all cells stands for what an operator could have fixed once and for all. A batch that starts together runs empty
unevenly where drafts are long, for easy texts end early; `--kept-full` refills its slots, as a server does.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench import machine
from bench.arguments import (
    MODELS,
    add_sweep,
    add_threads,
    checkpoint,
    ended,
    given,
    pairs_parser,
    subject_of,
    workload_of,
)
from bench.cells import PLAIN, Cell
from bench.grid import Grid
from bench.metrics import CellResult, fastest
from bench.policies import ADAPTIVE, FIXED, GOODPUT, OFF, POLICIES, often, plays
from bench.run import Engines, measure, opened
from bench.stats import Bar, Ratio, paired_ratio
from bench.workload import Workload
from cli.arguments import one_of, several, whole
from protocol.errors import ConfigError

HEADER = (
    *("target", "batch", "off, tokens/s", "best fixed", "tokens/s", "policy", "tokens/s", "over best fixed"),
    *("over off", "plays"),
)
OF_BEST, OF_OFF, OF_OTHERS = 0.95, 0.98, 1.0  # what goodput has to reach in every cell


@dataclass(frozen=True, slots=True)
class Measured:
    """One target and batch. rates: tokens per second of each policy, fixed being the best of the sweep.

    over_fixed, over_off: of each policy that chooses by itself, measured anew. played: its rounds by "depth/length".
    swept: every fixed setting over plain decoding, in the sweep.
    """

    target: str
    batch: int
    best: str
    rates: dict[str, list[float]]
    over_fixed: dict[str, Ratio]
    over_off: dict[str, Ratio]
    played: dict[str, dict[str, float]]
    swept: dict[str, float]
    identical: float


def measure_target(target: Path, args: Namespace) -> Iterator[Measured]:
    modes = (PLAIN, FIXED, *choosing(args))
    with opened(subject_of(args, target, max(args.batch), args.threads), modes) as engines:
        for batch in args.batch:
            sys.stderr.write(f"{target.name}, batch {batch}\n")
            workload = workload_of(args, target, max(batch, args.num_prompts))
            yield measure_batch(engines, workload, target.name, batch, args)


def choosing(args: Namespace) -> list[str]:
    return [policy for policy in args.policies if policy in ADAPTIVE]


def measure_batch(engines: Engines, workload: Workload, target: str, batch: int, args: Namespace) -> Measured:
    queue = args.kept_full * batch
    grid = Grid((PLAIN, FIXED), [batch], args.depths, args.lengths, kept_full=args.kept_full)
    competing = [cell for cell in grid.cells() if cell.queue == queue]
    swept = measure(engines, competing, workload, repeat=args.sweep, max_tokens=args.max_tokens)
    chosen = fastest(swept, FIXED)
    own = [Cell(name, batch, queue=queue) for name in choosing(args)]
    cells = [Cell(PLAIN, batch, queue=queue), chosen, *own]
    results = measure(engines, cells, workload, repeat=args.pairs, max_tokens=args.max_tokens)
    played = {cell.mode: plays(engines.ours.rounds[cell]) for cell in own}
    return measured(target, swept, results, played)


def measured(
    target: str, swept: Sequence[CellResult], results: Sequence[CellResult], played: dict[str, dict[str, float]]
) -> Measured:
    """swept, results: with plain decoding among them."""
    rates = {result.cell.mode: result.tokens_per_second for result in results}
    fixed = next(result for result in results if result.cell.mode == FIXED)
    base = next(result.tokens_per_second for result in swept if result.cell.mode == PLAIN)
    settings = {result.cell.setting: result.tokens_per_second for result in swept if result.cell.mode == FIXED}
    return Measured(
        target=target,
        batch=fixed.cell.batch,
        best=fixed.cell.setting,
        rates=rates,
        over_fixed={name: paired_ratio(rates[name], rates[FIXED]) for name in played},
        over_off={name: paired_ratio(rates[name], rates[PLAIN]) for name in played},
        played=played,
        swept={name: paired_ratio(own, base).median for name, own in settings.items()},
        identical=min(result.identical or 0.0 for result in results),
    )


def bars(cells: Sequence[Measured]) -> list[Bar]:
    """What goodput has to reach; none where it did not run."""
    made = []
    for cell in (cell for cell in cells if GOODPUT in cell.played):
        name, rates = f"{cell.target}, batch {cell.batch}: {GOODPUT}", cell.rates
        made.append(Bar(f"{name} over the best fixed", "at least", OF_BEST, cell.over_fixed[GOODPUT], cell.best))
        made.append(Bar(f"{name} over off", "at least", OF_OFF, cell.over_off[GOODPUT]))
        others = [other for other in cell.played if other != GOODPUT]
        made += [
            Bar(f"{name} over {other}", "at least", OF_OTHERS, paired_ratio(rates[GOODPUT], rates[other]))
            for other in others
        ]
    return made


def against_each(cells: Sequence[Measured], policy: str) -> dict[str, float]:
    """The policy's speed-up over plain, over that of each fixed setting: geometric means over the cells."""
    ours = fmean(log(cell.over_off[policy].median) for cell in cells)
    return {name: exp(ours - fmean(log(cell.swept[name]) for cell in cells)) for name in cells[0].swept}


def report(cells: Sequence[Measured], args: Namespace, place: Mapping[str, Any]) -> dict[str, Any]:
    names = ("pairs", "sweep", "num_prompts", "max_tokens", "depths", "lengths", "batch", "kept_full")
    return {
        "machine": place,
        "settings": given(args, *names),
        "cells": [asdict(cell) for cell in cells],
        "against_each_fixed": {policy: against_each(cells, policy) for policy in cells[0].played},
        "bars": [bar.as_json() for bar in bars(cells)],
    }


def table(cells: Sequence[Measured], place: Mapping[str, Any]) -> str:
    rows = [_row(cell, policy) for cell in cells for policy in cell.played]
    missed = [bar.name for bar in bars(cells) if not bar.met]
    notes = [_over_each(against_each(cells, policy), policy) for policy in cells[0].played]
    notes.append(f"Bars not met: {'; '.join(missed) or 'none'}.")
    notes.append(f"Identical to the plain loop: {min(cell.identical for cell in cells):.0%}.")
    return machine.markdown(HEADER, rows, *notes, machine.footer(place))


def _row(cell: Measured, policy: str) -> list[object]:
    off, fixed, own = (f"{median(cell.rates[name]):.0f}" for name in (PLAIN, FIXED, policy))
    ratios = [over[policy].text(".3f") for over in (cell.over_fixed, cell.over_off)]
    return [cell.target, cell.batch, off, cell.best, fixed, policy, own, *ratios, often(cell.played[policy])]


def _over_each(each: Mapping[str, float], policy: str) -> str:
    closest = min(each, key=lambda name: each[name])
    return (
        f"Over all cells {policy} makes {each[closest]:.3f} of the best single setting ({closest}), by geometric means "
        f"of speed-ups over off; {sum(ratio > 1 for ratio in each.values())} of {len(each)} are beaten."
    )


def run(args: Namespace) -> int:
    if not choosing(args):
        raise ConfigError(f"--policies needs one that chooses by itself: {', '.join(ADAPTIVE)}")
    cells, place = list[Measured](), machine.describe()
    for target in args.targets:
        for cell in measure_target(target, args):
            cells.append(cell)
            machine.save(args.out, report(cells, args, place), table(cells, place))
    sys.stdout.write(table(cells, place))
    beaten = GOODPUT not in cells[0].played or min(against_each(cells, GOODPUT).values()) >= 1
    return 0 if beaten and all(bar.met for bar in bars(cells)) else 1


def main() -> int:
    parser = pairs_parser(__doc__, "router.json")
    add, choices = parser.add_argument, f"{','.join(POLICIES)}; {OFF} and {FIXED} always run"
    add("--targets", type=several(checkpoint), default=[MODELS / "large", MODELS / "small"])
    add("--policies", type=several(one_of(*POLICIES, *ADAPTIVE)), default=list(POLICIES), help=choices)
    add("--batch", type=several(whole(1)), default=[1, 2, 4, 8, 16, 32])
    add("--kept-full", type=whole(0), default=0, help="batches that wait, so that no slot is empty")
    add_sweep(parser, repeat=3)
    add_threads(parser)
    return ended("bench.router", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
