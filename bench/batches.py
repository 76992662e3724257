"""What a target chooses by itself, batch by batch, against the better of drafting in turn and off.

    sweep    every depth and length in turn; the best goes on
    learn    the router and its modes play by themselves, as in service
    pairs    off, the best in turn, and what is chosen; interleaved repetitions

All on the same two devices, target and pool apart (bench/pair.py), one pool for all batches.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.cells import Cell
from bench.grid import Grid
from bench.metrics import CellResult
from bench.pair import PairEngine
from bench.run import Engines, measure
from bench.stats import Bar, Ratio, best, paired_ratio
from bench.workload import Workload
from targets.timeline import RoundRecord

OF_BETTER = 0.98  # what has to be reached at every batch
MODES = ("plain", "fixed", "chosen")


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens per second: off, the best depth and length in turn, chosen. over_better: chosen over the better of both.

    played: share of the chosen rounds, the last thousand at most, that were off, and of each mode.
    """

    batch: int
    temperature: float
    in_turn: str
    off: float
    best_in_turn: float
    chosen: float
    over_better: Ratio
    played: dict[str, float]
    identical: float

    @property
    def bar(self) -> Bar:
        name = f"batch {self.batch}, temperature {self.temperature:g}: chosen over the better of in turn and off"
        return Bar(name, "at least", OF_BETTER, self.over_better, self.in_turn)


def measured(engine: PairEngine, workload: Workload, args: Namespace) -> Iterator[Measured]:
    """engine: open, and with a pool that has measured itself."""
    engines = Engines(engine, dict.fromkeys(MODES, engine), {engine.name: engine.version})
    for temperature in args.temperatures:
        for batch in args.batches:
            enough = replace(workload, num_prompts=max(batch, workload.num_prompts))
            yield measure_batch(engines, engine, enough, Cell("chosen", batch, temperature=temperature), args)


def measure_batch(engines: Engines, engine: PairEngine, workload: Workload, chosen: Cell, args: Namespace) -> Measured:
    grid = Grid(("fixed",), [chosen.batch], args.depths, args.lengths, (chosen.temperature,))
    swept = measure(engines, grid.cells(), workload, repeat=args.sweep, max_tokens=args.max_tokens)
    turn = best({result.cell: result.tokens_per_second for result in swept})
    off = Cell("plain", chosen.batch, temperature=chosen.temperature)
    measure(engines, [chosen], workload, repeat=args.learn, max_tokens=args.max_tokens)
    began = time.perf_counter()
    results = measure(engines, [off, turn, chosen], workload, repeat=args.pairs, max_tokens=args.max_tokens)
    by_cell = {result.cell: result.tokens_per_second for result in results}
    better = best({cell: by_cell[cell] for cell in (off, turn)})
    return Measured(
        batch=chosen.batch,
        temperature=chosen.temperature,
        in_turn=f"{turn.depth}/{turn.length}",
        off=median(by_cell[off]),
        best_in_turn=median(by_cell[turn]),
        chosen=median(by_cell[chosen]),
        over_better=paired_ratio(by_cell[chosen], by_cell[better]),
        played=played([one for one in engine.latest(chosen) if one.marks.began > began]),
        identical=min(_identical(result) for result in results),
    )


def played(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """What share of decoding rounds was what: off where nothing was verified, else by mode."""
    names = [one.mode.value if any(one.lengths) else "off" for one in rounds if one.lengths]
    return {name: round(count / len(names), 4) for name, count in Counter(names).most_common()}


def _identical(result: CellResult) -> float:
    return result.identical or 0.0


def report(cells: Sequence[Measured]) -> dict[str, Any]:
    bars = [cell.bar.as_json() for cell in cells]
    return {"machine": machine.describe(), "cells": [asdict(cell) for cell in cells], "bars": bars}


def table(cells: Sequence[Measured]) -> str:
    lines = [
        "| batch | T | off, tok/s | best in turn | tok/s | chosen, tok/s | over the better of both | met | plays |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        ratio, bar = cell.over_better, "yes" if cell.bar.met else "**no**"
        plays = ", ".join(f"{name} {share:.0%}" for name, share in cell.played.items() if share)
        lines.append(
            f"| {cell.batch} | {cell.temperature:g} | {cell.off:.0f} | {cell.in_turn} | {cell.best_in_turn:.0f} "
            f"| {cell.chosen:.0f} | {ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f}) | {bar} | {plays} |"
        )
    identical = min(cell.identical for cell in cells)
    lines += ["", f"Identical to the plain loop: {identical:.0%} of outputs.", machine.footer(machine.describe())]
    return "\n".join(lines) + "\n"


def run(engine: PairEngine, workload: Workload, args: Namespace, out: Path) -> int:
    """0 where every batch reaches its bar. What is known so far is kept after every batch."""
    cells: list[Measured] = []
    for cell in measured(engine, workload, args):
        cells.append(cell)
        sys.stderr.write(table(cells[-1:]))
        machine.save(out, report(cells), table(cells))
    sys.stdout.write(table(cells))
    return 0 if all(cell.bar.met for cell in cells) else 1
