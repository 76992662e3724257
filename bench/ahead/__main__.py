"""Question: what does drafting ahead bring where target and pool have a core each, against drafting in turn and off?

    sweep   every depth and length in each mode; the best of each mode goes on
    pairs   plain, the best of each mode, and what the router chooses by itself; interleaved repetitions
    bound   the speed-up that the times of rounds in turn and the hit rate allow (latency_bound in bench/policies.py)

Real processes and a real link: the target has core 0, the pool core 1.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from bench import machine
from bench.ahead.pair import PairEngine, paired
from bench.arguments import add_sweep, add_target, ended, given, pairs_parser, subject_of, workload_of
from bench.cells import CHOSEN, PLAIN, Cell
from bench.grid import Grid
from bench.metrics import CellResult, fastest
from bench.ours import PROFILE_REPEAT
from bench.policies import Hits, hits, latency_bound, often, plays, times
from bench.run import Engines, measure
from bench.stats import Bar, Ratio, best, paired_ratio
from bench.workload import Workload
from cli.arguments import several, whole
from protocol.plan import Mode
from protocol.stats import RoundStats

TARGET_CORE, POOL_CORE = 0, 1
OF_BETTER = 0.98  # of the better of in turn and off, that the router's choice has to reach


@dataclass(frozen=True, slots=True)
class Comparison:
    """One batch and temperature. best: "depth/length" and rates: tokens per second, by mode, those of plain included.

    gain: ahead over in turn. chosen: over the better of in turn and plain. hidden: share of the wait in turn
    that is gone where all proposals were at hand. played: share of the router's rounds.
    """

    batch: int
    temperature: float
    best: dict[str, str]
    rates: dict[str, float]
    gain: Ratio
    bound: float
    hits: Hits
    hidden: float | None
    chosen: Ratio
    played: dict[str, float]
    identical: float

    @property
    def bar(self) -> Bar:
        name = f"batch {self.batch}, temperature {self.temperature:g}: chosen over the better of in turn and off"
        return Bar(name, "at least", OF_BETTER, self.chosen)


def compare(engines: Engines, engine: PairEngine, workload: Workload, chosen: Cell, args: Namespace) -> Comparison:
    """chosen: the cell of the router's own choice, at this batch and temperature."""
    grid = Grid(list(Mode), [chosen.batch], args.depths, args.lengths, (chosen.temperature,))
    swept = measure(engines, grid.cells(), workload, repeat=args.sweep, max_tokens=args.max_tokens)
    winners = {mode: fastest(swept, mode) for mode in Mode}
    plain = replace(chosen, mode=PLAIN)
    measure(engines, [chosen], workload, repeat=args.learn, max_tokens=args.max_tokens)
    engine.rounds[chosen].clear()
    cells = list(dict.fromkeys([plain, *winners.values(), chosen]))
    results = measure(engines, cells, workload, repeat=args.pairs, max_tokens=args.max_tokens)
    return comparison(engine, {result.cell: result for result in results}, winners, plain, chosen)


def comparison(
    engine: PairEngine, results: dict[Cell, CellResult], winners: dict[Mode, Cell], plain: Cell, chosen: Cell
) -> Comparison:
    rates = {cell: result.tokens_per_second for cell, result in results.items()}
    in_turn, ahead = winners[Mode.IN_TURN], winners[Mode.AHEAD]
    waited, found = times(engine.rounds[in_turn]), hits(engine.stats.get(ahead, RoundStats()))
    better = best({cell: rates[cell] for cell in (in_turn, plain)})
    return Comparison(
        batch=chosen.batch,
        temperature=chosen.temperature,
        best={mode: cell.setting for mode, cell in winners.items()},
        rates={cell.mode: round(median(rates[cell]), 1) for cell in (plain, *winners.values(), chosen)},
        gain=paired_ratio(rates[ahead], rates[in_turn]),
        bound=round(latency_bound(waited, found.share), 4),
        hits=found,
        hidden=None if found.wait_ms is None else round(1 - found.wait_ms / waited.draft_ms, 4),
        chosen=paired_ratio(rates[chosen], rates[better]),
        played=plays(engine.rounds[chosen]),
        identical=min(result.identical or 0.0 for result in results.values()),
    )


def measured(engine: PairEngine, args: Namespace) -> Iterator[Comparison]:
    modes = (PLAIN, *Mode, CHOSEN)
    engines = Engines(engine, dict.fromkeys(modes, engine), {engine.name: engine.version})
    for temperature in args.temperatures:
        for batch in args.batch:
            workload = workload_of(args, args.target, max(batch, args.num_prompts))
            chosen = Cell(CHOSEN, batch, temperature=temperature)
            yield compare(engines, engine, workload, chosen, args)


def table(cells: Sequence[Comparison], place: dict[str, object]) -> str:
    header = ["batch", "T", "mode", "depth/length", "tokens/s", "over in turn", "bound"]
    header += ["hits", "wait hidden on hits"]
    rows = [_row(cell, mode) for cell in cells for mode in cell.rates]
    identical = f"Identical to the plain loop: {min(cell.identical for cell in cells):.0%} of outputs."
    return machine.markdown(header, rows, *map(_verdict, cells), identical, machine.footer(place))


def _row(cell: Comparison, mode: str) -> list[object]:
    start = [cell.batch, f"{cell.temperature:g}", mode, cell.best.get(mode, ""), f"{cell.rates[mode]:.0f}"]
    if mode != Mode.AHEAD:
        return [*start, "", "", "", ""]
    hit, hidden = cell.hits, "" if cell.hidden is None else f"{cell.hidden:.2f}"
    return [*start, cell.gain.text(".3f"), f"{cell.bound:.3f}", f"{hit.share:.2f}", hidden]


def _verdict(cell: Comparison) -> str:
    met = "met" if cell.bar.met else "**not met**"
    return f"{cell.bar.name}: {cell.chosen.text('.3f')}, {met}; it plays {often(cell.played)}."


def report(cells: Sequence[Comparison], place: dict[str, object], args: Namespace) -> dict[str, Any]:
    names = ("weights", "workload", "pairs", "sweep", "depths", "lengths", "max_tokens")
    bars = [cell.bar.as_json() for cell in cells]
    return {"machine": place, "settings": given(args, *names), "cells": [asdict(cell) for cell in cells], "bars": bars}


def run(args: Namespace) -> int:
    """0 where every cell reaches its bar. What is known so far is kept after every cell."""
    os.sched_setaffinity(0, [TARGET_CORE])
    cells, place = list[Comparison](), machine.describe()
    subject = subject_of(args, args.target, max(args.batch), 1)
    with paired(subject, (POOL_CORE,), measured=PROFILE_REPEAT) as engine:
        for cell in measured(engine, args):
            cells.append(cell)
            machine.save(args.out, report(cells, place, args), table(cells, place))
    sys.stdout.write(table(cells, place))
    return 0 if all(cell.bar.met for cell in cells) else 1


def main() -> int:
    parser = pairs_parser(__doc__, "ahead.json", depths=[2, 4], lengths=[2, 3, 4, 6])
    add = parser.add_argument
    add("--batch", type=several(whole(1)), default=[1, 2, 4, 8, 16, 32])
    add("--temperatures", type=several(float), default=[0.0, 1.0])
    add("--learn", type=whole(1), default=3, help="runs before, in which the router learns (default: 3)")
    add_target(parser)
    add_sweep(parser, repeat=2)
    return ended("bench.ahead", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
