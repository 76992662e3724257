"""Question: does a pool that does not keep up cost nothing, with the same text at 95 % of plain throughput or more?

    plain   no pool
    late    every reply is held back until its deadline is long over (asleep, so it takes no CPU)
    small   memory and a row for one sequence of the batch; the others are answered BUSY

The pool is a process of its own behind a real link. Every run has a new link, so each pays anew for the deadlines that
are waited for before a late pool is left alone. Throughput is all tokens over the time from the hand-over to the last
one; ratios compare runs of one repetition, and the median counts.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.ahead.pair import PairEngine
from bench.arguments import MODELS, RESULTS, add_threads, ended, pairs_parser, workload_of
from bench.cells import PAGE, PLAIN, BenchEngine, Cell, Subject
from bench.metrics import CellResult
from bench.ours import DraftPoolEngine
from bench.policies import num_accepted, num_missed
from bench.pool_process import PoolSettings, pool_process
from bench.run import Engines, measure
from bench.stats import Bar, paired_ratio
from bench.workload import EQUAL
from cli.arguments import depth, whole
from deployments.process import DTYPES

LATE, SMALL = "late", "small"
CASES = (PLAIN, LATE, SMALL)
BAR = 0.95


@dataclass(frozen=True, slots=True)
class Degraded:
    """One target and case. missed: rounds whose draft did not come, the deadline being over or not waited for any more.

    busy and drafted as the pool counts them. accepted: draft tokens, by the target.
    """

    target: str
    case: str
    rates: list[float]
    plain: list[float]
    identical: float
    missed: int = 0
    busy: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def is_real(self) -> bool:
        """Whether the pool was what its name says: a late one drafts and nothing of it is used, a small one refuses."""
        late = self.missed > 0 and self.accepted == 0
        return {PLAIN: self.drafted == 0, LATE: late, SMALL: self.busy > 0}[self.case]

    @property
    def bar(self) -> Bar:
        return Bar(f"{self.target}: {self.case}, over plain", "at least", BAR, paired_ratio(self.rates, self.plain))

    @property
    def passed(self) -> bool:
        return self.bar.ratio.median >= BAR and self.is_real and self.identical == 1.0


def measure_target(target: Path, args: Namespace) -> list[Degraded]:
    positions = -(-(EQUAL + args.max_tokens + args.length) // PAGE) * PAGE  # of one sequence to its end
    subject = Subject(
        target, args.drafter, DTYPES[args.dtype], args.threads, args.batch, EQUAL + args.max_tokens + args.length
    )
    late = PoolSettings(
        args.drafter, (), args.batch, args.batch * positions, subject.dtype, late_ms=2 * args.deadline_ms
    )
    places = {LATE: late, SMALL: replace(late, max_rows=1, positions=positions, late_ms=0.0)}
    with ExitStack() as stack:
        ours = DraftPoolEngine(subject)
        ours.open()
        stack.callback(ours.close)
        pools = {case: stack.enter_context(opened(subject, place, args.deadline_ms)) for case, place in places.items()}
        return compare(ours, pools, target, args)


@contextmanager
def opened(subject: Subject, place: PoolSettings, deadline_ms: float) -> Iterator[PairEngine]:
    with pool_process(place) as describe:
        engine = PairEngine(subject, describe, deadline_ms / 1e3)
        engine.open()
        try:
            yield engine
        finally:
            engine.close()


def compare(ours: DraftPoolEngine, pools: Mapping[str, PairEngine], target: Path, args: Namespace) -> list[Degraded]:
    workload = workload_of(args, target, args.batch, "equal")
    cells = {case: Cell(case, args.batch, args.depth, args.length, args.temperature) for case in pools}
    cells[PLAIN] = Cell(PLAIN, args.batch, temperature=args.temperature)
    by_mode: dict[str, BenchEngine] = {PLAIN: ours, **pools}
    results = measure(
        Engines(ours, by_mode), [cells[case] for case in CASES], workload, repeat=args.pairs, max_tokens=args.max_tokens
    )
    by_case = {result.mode: result for result in results}
    return [degraded(target.name, by_case[case], by_case[PLAIN], pools.get(case), cells[case]) for case in CASES]


def degraded(target: str, result: CellResult, plain: CellResult, pool: PairEngine | None, cell: Cell) -> Degraded:
    rates, base = result.total_tokens_per_second, plain.total_tokens_per_second
    if pool is None:
        return Degraded(target, cell.mode, rates, base, result.identical or 0.0)
    rounds, stats = pool.rounds[cell], pool.describe().stats
    counts = (num_missed(rounds), stats.num_busy, stats.num_drafted, num_accepted(rounds))
    return Degraded(target, cell.mode, rates, base, result.identical or 0.0, *counts)


def table(rows: Sequence[Degraded], place: dict[str, Any]) -> str:
    lines = [
        "| target | case | tokens/s | over plain | 90 % interval | identical | missed | BUSY | passed |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        ratio = row.bar.ratio
        lines.append(
            f"| {row.target} | {row.case} | {median(row.rates):.1f} | {ratio.median:.3f} "
            f"| {ratio.low:.3f}-{ratio.high:.3f} | {row.identical:.0%} | {row.missed} | {row.busy} "
            f"| {'yes' if row.passed else '**no**'} |"
        )
    return "\n".join([*lines, "", machine.footer(place)]) + "\n"


def run(args: Namespace) -> int:
    rows = [row for target in args.target for row in measure_target(target, args)]
    place = machine.describe()
    names = ("batch", "depth", "length", "temperature", "dtype", "max_tokens", "deadline_ms", "pairs")
    settings = {name: getattr(args, name) for name in names}
    stored = [asdict(row) | {"passed": row.passed} for row in rows]
    machine.save(args.out, {"machine": place, "settings": settings, "rows": stored}, table(rows, place))
    sys.stdout.write(table(rows, place))
    return 0 if all(row.passed for row in rows) else 1


def main() -> int:
    parser = pairs_parser(__doc__, pairs=5, max_tokens=1024, out=RESULTS / "degraded.json")
    add = parser.add_argument
    add("--target", type=Path, nargs="+", default=[MODELS / "large", MODELS / "small"])
    add("--batch", type=whole(1), default=8)
    add("--depth", type=depth, default=2)
    add("--length", type=whole(1, 64), default=4)
    add("--temperature", type=float, default=0.8)
    add("--dtype", choices=sorted(DTYPES), default="fp32")
    add("--deadline-ms", type=float, default=100.0)
    add_threads(parser)
    parser.set_defaults(threads=1)
    return ended("bench.degraded", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
