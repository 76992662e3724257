"""What `draftpool simulate` prints and draws: a fold over the records of rounds and the times of requests."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.table import Table

from cli.output import table
from protocol.errors import ConfigError
from protocol.record import RowRecord
from simulation.simulate import Simulation
from simulation.target import Served, Target

NUM_SHARES = 4

Outcomes = Mapping[int, Simulation]  # by number of draft replicas


def report(outcomes: Outcomes) -> Iterator[str | Table]:
    """wait, draft: ms of a round, at the pool and in all. late: share of the rounds that asked in vain.

    at hand: share of the proposals that were there before they were asked for. tokens/round: of a row, with the bonus.
    """
    times = ("TTFT ms p50", "p99", "TPOT ms p50", "p99")
    heads = ("pool busy", "target", "tokens/s", *times, "tokens/round", "wait ms", "draft ms", "late", "at hand")
    rows = [row for count, outcome in outcomes.items() for row in rows_of(count, outcome)]
    yield table("simulated", ("replicas",), heads, rows)
    for count, outcome in outcomes.items():
        if count:
            name = f"{count} replica{'s' * (count > 1)}"
            yield from (f"{target.name}, {name}: {most_drafted(target)}" for target in outcome.targets)


def rows_of(count: int, outcome: Simulation) -> Iterator[Sequence[str]]:
    busy = [replica.busy_s / outcome.elapsed_s for replica in outcome.network.replicas]
    rate = sum(target.num_tokens for target in outcome.targets) / outcome.elapsed_s
    yield (str(count), f"{fmean(busy):.0%}" if busy else "", "all", f"{rate:.1f}")
    for target in outcome.targets:
        yield ("", "", target.name, f"{target.tokens_per_s:.1f}", *latencies(target), *rounds(target))


def latencies(target: Target) -> Iterator[str]:
    """Median and 99th percentile of the times to the first token and per token."""
    for values, digits in ((ttft_ms(target), 2), (tpot_ms(target), 3)):
        yield from (f"{value:.{digits}f}" for value in np.percentile(values, (50, 99))) if values else ("", "")


def rounds(target: Target) -> Iterator[str]:
    records = [record for record in target.records if record.rows]
    if not records:
        return
    rows = rows_drafted(target)
    proposed = [row for row in rows if row.num_proposed]
    at_hand = sum(row.at_hand for row in proposed) / max(1, len(proposed))
    yield f"{1 + fmean(row.num_accepted for row in rows):.2f}"
    yield from (f"{fmean(record.wait_ms for record in records):.2f}", f"{fmean(r.draft_ms for r in records):.2f}")
    yield from (f"{fmean(not record.answered for record in records):.1%}", f"{at_hand:.0%}")


def most_drafted(target: Target) -> str:
    rows = rows_drafted(target)
    most = Counter(map(drafted, rows)).most_common(NUM_SHARES)
    return ", ".join(f"{number / len(rows):.0%} {what}" for what, number in most)


def drafted(row: RowRecord) -> str:
    return "plain" if row.depth is None else f"{row.length} tokens at depth {row.depth}"


def rows_drafted(target: Target) -> list[RowRecord]:
    return [row for record in target.records for row in record.rows]


def ttft_ms(target: Target) -> list[float]:
    return [1e3 * (one.first_s - one.arrival.at_s) for one in target.served if one.first_s is not None]


def tpot_ms(target: Target) -> list[float]:
    return [ms for one in target.served if (ms := _tpot_ms(one)) is not None]


def _tpot_ms(served: Served) -> float | None:
    if served.first_s is None or served.ended_s is None or len(served.tokens) < 2:
        return None
    return 1e3 * (served.ended_s - served.first_s) / (len(served.tokens) - 1)


def draw(outcomes: Outcomes, path: Path) -> None:
    """Draws tokens per second and time per token of each target over the number of replicas."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.stderr.write("draftpool: the plot is left out, it needs matplotlib; install with '.[bench]'\n")
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for targets in zip(*(outcome.targets for outcome in outcomes.values()), strict=True):
        if targets[0].served:
            speed.plot(list(outcomes), [target.tokens_per_s for target in targets], "o-", label=targets[0].name)
            medians = [float(np.median(tpot_ms(target) or [0.0])) for target in targets]
            latency.plot(list(outcomes), medians, "o-", label=targets[0].name)
    for axes, name in ((speed, "tokens per second"), (latency, "TPOT, ms (median)")):
        axes.set(xlabel="draft replicas", ylabel=name, ylim=(0, None))
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from None
