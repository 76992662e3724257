"""What an operator wants to know of a simulation: a fold over the records of its rounds and the times of its texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from protocol.plan import DepthRule
from protocol.record import Origin, RowRecord
from simulation.target import Served, Target

Drafted = tuple[DepthRule | None, int]


@dataclass(frozen=True, slots=True)
class Quantiles:
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class TargetReport:
    """ttft_ms: None when no request ended, tpot_ms: when none had two tokens. tokens_per_round: of a row, the bonus
    counted; None without rounds. wait_ms, draft_ms: of a round, at the pool and in all. late, at_hand: shares, of the
    rounds that asked in vain and of the proposals that were there before they were asked for. drafted: shares of rows,
    most often first.
    """

    name: str
    tokens_per_s: float
    ttft_ms: Quantiles | None
    tpot_ms: Quantiles | None
    tokens_per_round: float | None
    wait_ms: float
    draft_ms: float
    late: float
    at_hand: float
    drafted: tuple[tuple[Drafted, float], ...]


def report(target: Target) -> TargetReport:
    records = [record for record in target.records if record.rows]
    rows = [row for record in records for row in record.rows]
    proposed = [row for row in rows if row.num_proposed]
    at_hand = [row for row in proposed if row.origin is not Origin.FRESH]
    most = Counter(map(_drafted, rows)).most_common()
    return TargetReport(
        target.name,
        target.tokens_per_s,
        _quantiles([1e3 * (one.first_s - one.arrival.at_s) for one in target.served if one.first_s is not None]),
        _quantiles([ms for one in target.served if (ms := _tpot_ms(one)) is not None]),
        1 + sum(row.num_accepted for row in rows) / len(rows) if rows else None,
        _mean([record.wait_ms for record in records]),
        _mean([record.draft_ms for record in records]),
        _mean([float(not record.answered) for record in records]),
        len(at_hand) / len(proposed) if proposed else 0.0,
        tuple((what, number / len(rows)) for what, number in most),
    )


def _drafted(row: RowRecord) -> Drafted:
    return (row.rule, row.length) if row.rule else (None, 0)


def _tpot_ms(served: Served) -> float | None:
    if served.first_s is None or served.ended_s is None or len(served.tokens) < 2:
        return None
    return 1e3 * (served.ended_s - served.first_s) / (len(served.tokens) - 1)


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    return Quantiles(*map(float, np.percentile(values, (50, 99)))) if values else None


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
