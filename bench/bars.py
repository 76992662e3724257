"""Question: does the offline engine clear its bars, each a ratio within one run?

Settings of a speculating mode compete in a first run; the winners, ours and the peers' alike, are measured anew in a
second one of as many repetitions, beside the plain loops.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from bench import machine
from bench.arguments import add_target, add_threads, ended, given, listed, pairs_parser, subject_of, workload_of
from bench.cells import Cell, Subject
from bench.command import say_left_out
from bench.grid import LENGTH_MODES, Grid
from bench.metrics import CellResult, fastest, rate
from bench.passes import products_ms, read_ms, step_bytes, step_ms
from bench.run import Engines, measure, opened
from bench.stats import SLACK, Bar, Ratio, Sense, paired_ratio
from bench.workload import Workload

PEERS = ("generate", "assisted", "openvino", "openvino-draft")
CROWD = 8
NUM_PASSES = 20  # of which a read, or the products, is the median
DRAFT_PROBE = Cell("fixed", 1, depth=2, length=4)


@dataclass(slots=True)
class Bars:
    """pairs: repetitions of each run. results: of every run, under its name."""

    engines: Engines
    workload: Workload
    pairs: int
    max_tokens: int
    bars: list[Bar] = field(default_factory=list)
    results: dict[str, list[CellResult]] = field(default_factory=dict)

    def run(self, name: str, cells: Sequence[Cell]) -> list[CellResult]:
        sys.stderr.write(f"{name}: {len(cells)} cells, {self.pairs} repetitions\n")
        self.results[name] = measure(self.engines, cells, self.workload, repeat=self.pairs, max_tokens=self.max_tokens)
        return self.results[name]

    def add(self, name: str, sense: Sense, asked: float, ratio: Ratio | None, note: str = "") -> None:
        """Without a ratio, because an engine is left out, there is no bar."""
        if ratio is not None:
            self.bars.append(Bar(name, sense, asked, ratio, note))


def ratio(ours: CellResult | None, theirs: CellResult | None) -> Ratio | None:
    return paired_ratio(ours.tokens_per_second, theirs.tokens_per_second) if ours and theirs else None


def of_mode(results: Sequence[CellResult], mode: str) -> CellResult | None:
    return next((result for result in results if result.cell.mode == mode), None)


def winners(results: Sequence[CellResult]) -> list[Cell]:
    """The fastest setting of each mode."""
    return [fastest(results, mode) for mode in dict.fromkeys(result.cell.mode for result in results)]


def floor_bars(bars: Bars, subject: Subject) -> None:
    """Read, matrix products and the plain loop in turn, all in the time of one pass or step."""
    cell, ours = Cell("plain", 1), bars.engines.ours
    num_bytes = step_bytes(subject.target, subject.dtype, subject.weights)
    groups = bars.workload.groups(cell)
    reads, products, steps = [], [], []
    for _ in range(bars.pairs + 1):
        reads.append(read_ms(num_bytes, NUM_PASSES))
        products.append(products_ms(ours.model, 1, NUM_PASSES))
        steps.append(1e3 / rate([ours.run(cell, group, bars.max_tokens) for group in groups], cell))
    note = f"{median(steps):.2f} ms a token, {median(products):.2f} ms the products, {median(reads):.2f} ms the read"
    bars.add("plain step over its matrix products", "at most", 1.6, paired_ratio(steps[1:], products[1:]), note)
    bars.add("matrix products over a read of the weights", "at most", 2.4, paired_ratio(products[1:], reads[1:]))


def batch_bars(bars: Bars, batch: int) -> None:
    results = bars.run(f"batch {batch}", Grid(("plain", "generate", "openvino"), [batch], [], []).cells())
    plain = of_mode(results, "plain")
    bars.add(f"plain, batch {batch}, over generate", "at least", 3.0, ratio(plain, of_mode(results, "generate")))
    bars.add(f"plain, batch {batch}, over OpenVINO", "at least", 1.0, ratio(plain, of_mode(results, "openvino")))


def speculation_bars(bars: Bars, grid: Grid, asked: float) -> None:
    """At batch 1 and one temperature: the best of each mode beside the plain loops."""
    temperature = grid.temperatures[0]
    chosen = winners(bars.run(f"choosing at temperature {temperature}", grid.cells()))
    plain_cells = replace(grid, modes=["plain", *(["openvino"] if "openvino-draft" in grid.modes else [])]).cells()
    probe = replace(DRAFT_PROBE, temperature=temperature)
    cells = [*plain_cells, *chosen, *([] if probe in chosen else [probe])]
    results = bars.run(f"measured at temperature {temperature}", cells)
    plain, fixed = of_mode(results, "plain"), next(r for r in results if r.cell in chosen and r.cell.mode == "fixed")
    assert plain is not None
    name = f"best fixed (depth {fixed.cell.depth}, length {fixed.cell.length}) at temperature {temperature}"
    given = lawful(bars.engines, plain, fixed)
    reachable = min(asked, (1 - SLACK) * given)
    bars.add(f"{name}, over plain", "at least", reachable, ratio(fixed, plain), f"law {given:.2f}")
    bars.add(f"{name}, over assisted", "at least", 3.0, ratio(fixed, of_mode(results, "assisted")))
    openvino = [result for result in results if result.cell.mode.startswith("openvino")]
    theirs = max(openvino, key=lambda result: median(result.tokens_per_second), default=None)
    note = f"its {theirs.cell.mode}, length {theirs.cell.length}" if theirs else ""
    bars.add(f"{name}, over OpenVINO's best mode", "at least", 1.5, ratio(fixed, theirs), note)
    drafted = next(result for result in results if result.cell == probe)
    steps = [1e3 / tokens for tokens in plain.tokens_per_second]
    share = paired_ratio(drafted.draft_ms_per_token, steps)
    bars.add(f"drafted token at depth 2 over a plain step, temperature {temperature}", "at most", 0.12, share)


def crowd_bar(bars: Bars, grid: Grid, asked: float) -> None:
    """In a batch the best setting stands beside the plain loop alone."""
    chosen = winners(bars.run(f"choosing at batch {CROWD}", grid.cells()))
    plain, fixed = bars.run(f"measured at batch {CROWD}", [Cell("plain", CROWD), *chosen])
    name = f"best fixed (depth {fixed.cell.depth}, length {fixed.cell.length}) at batch {CROWD}, over plain"
    bars.add(name, "at least", asked, ratio(fixed, plain))


def lawful(engines: Engines, plain: CellResult, fixed: CellResult) -> float:
    """The speed-up that the costs measured here and the acceptance of the run itself allow."""
    costs = step_ms(engines.ours.model, (1, fixed.cell.length + 1), plain.cell.temperature, NUM_PASSES)
    drafts = median(fixed.draft_ms_per_token)
    return law(fixed.mean_acceptance_length or 1.0, fixed.cell.length, costs[1], costs[fixed.cell.length + 1], drafts)


def law(acceptance_length: float, length: int, plain_ms: float, verify_ms: float, draft_ms: float) -> float:
    """Tokens of a round over its price in plain steps. draft_ms: of one token."""
    return acceptance_length * plain_ms / (verify_ms + length * draft_ms)


def run(args: argparse.Namespace) -> int:
    subject = subject_of(args, args.target, CROWD, args.threads)
    workload = workload_of(args, args.target, args.num_prompts)
    with opened(subject, ("plain", "fixed", *args.peers)) as engines:
        bars = Bars(engines, workload, args.pairs, args.max_tokens)
        floor_bars(bars, subject)
        for batch in (1, CROWD):
            batch_bars(bars, batch)
        # Sampled by another engine's noise a text is another one, so peers are compared at temperature 0.
        modes = ["fixed", *(peer for peer in args.peers if peer in LENGTH_MODES)]
        speculation_bars(bars, Grid(modes, [1], args.depths, args.lengths), 1.4)
        crowd_bar(bars, Grid(("fixed",), [CROWD], args.depths, args.lengths), 1.0)
        say_left_out(engines)
    report = as_json(bars, args)
    machine.publish(args.out, report, table(bars.bars, report))
    return 0 if all(bar.met for bar in bars.bars) else 1


def as_json(bars: Bars, args: argparse.Namespace) -> dict[str, Any]:
    settings = given(args, "pairs", "num_prompts", "max_tokens", "depths", "lengths")
    return {
        "machine": machine.describe() | {"engines": bars.engines.versions},
        "settings": settings | {"target": args.target.name, "drafter": args.drafter.name, "dtype": "bf16"},
        "left_out": bars.engines.left_out,
        "bars": [bar.as_json() for bar in bars.bars],
        "runs": {name: [result.as_json() for result in results] for name, results in bars.results.items()},
    }


def table(bars: Sequence[Bar], report: dict[str, Any]) -> str:
    left_out = [f"Left out: {mode} ({reason})." for mode, reason in report["left_out"].items()]
    header = ("bar", "asked", "measured", "90 % interval", "pairs", "met")
    return machine.markdown(header, map(_row, bars), *left_out, machine.footer(report["machine"]))


def _row(bar: Bar) -> list[object]:
    ratio, met = bar.ratio, "yes" if bar.met else "**no**"
    name = f"{bar.name} ({bar.note})" if bar.note else bar.name
    asked, measured = f"{bar.sense} {bar.asked:.3g}", f"{ratio.median:.3g}"
    return [name, asked, measured, ratio.interval(".3g"), ratio.num_pairs, met]


def main() -> int:
    parser = pairs_parser(__doc__, "bars.json")
    parser.set_defaults(num_prompts=8)
    add_target(parser)
    add_threads(parser)
    parser.add_argument("--peers", type=listed(str), default=PEERS, help=f"some of {','.join(PEERS)} (default: all)")
    return ended("bench.bars", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
