"""Rounds and passes as a picture, in the trace-event JSON that Perfetto and Chrome's tracing page open.

A replica is a process with one track. On a target's track a round is a slice, with its parts inside, end to end:

    plan | draft | verify | commit

`draft` ends when the proposals are there. On a draft replica's track a pass is a slice, so one sees what was drafted
while what was verified. Each machine has its own clock: replicas on several nodes are shifted against each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.record import RoundRecord, RowRecord
from protocol.stats import PassStats


@dataclass(frozen=True, slots=True)
class Slice:
    """begin, end: seconds of a monotonic clock. args: counts to show beside it, as JSON values."""

    name: str
    begin: float
    end: float
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Track:
    """The slices of one replica, in order; a slice that lies inside another follows it."""

    name: str
    slices: tuple[Slice, ...]


def rounds(records: Sequence[RoundRecord]) -> tuple[Slice, ...]:
    """A round begins when the pass before it ends, and is drawn from when that pass's tokens are committed."""
    slices: list[Slice] = []
    ended = -math.inf
    for record in records:
        begin, ended = max(record.began_s, ended), record.ended_s
        slices += _round(record, begin)
    return tuple(slices)


def _round(record: RoundRecord, begin: float) -> Iterator[Slice]:
    args = {
        "origins": dict(Counter(row.origin.value for row in record.rows if row.origin)),
        "proposed": [row.num_proposed for row in record.rows],
        "accepted": [row.num_accepted for row in record.rows],
        "depth": record.plan.depth,
        "lengths": list(record.plan.lengths),
        "by_exit": by_exit(record.rows),
        "committed": record.num_committed,
        "prefill_tokens": record.num_prefill_tokens,
    }
    yield Slice(f"round {record.round_id} {record.plan.mode.value}", begin, record.ended_s, args)
    parts = {"plan": record.planned_s, "draft": record.drafted_s, "verify": record.verified_s}
    for name, end in (parts | {"commit": record.ended_s}).items():
        yield Slice(name, begin, end, {})
        begin = end


def by_exit(rows: Sequence[RowRecord]) -> dict[str, tuple[int, int]]:
    """By exit: the drafted tokens that the target came to, so none behind a refused one, and how many it accepted."""
    judged: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for row in rows:
        if row.depth is not None:
            judged[row.depth] += row.num_tried
            accepted[row.depth] += row.num_right
    return {str(exit_): (judged[exit_], accepted[exit_]) for exit_ in sorted(judged)}


def passes(ended: Sequence[tuple[float, PassStats]]) -> tuple[Slice, ...]:
    """ended: when each pass ended, and its counts."""
    return tuple(
        Slice(
            "pass",
            end - stats.pass_ms / 1e3,
            end,
            {"rows": stats.num_rows, "targets": stats.num_targets, "prefill_tokens": stats.num_prefill_tokens},
        )
        for end, stats in ended
    )


def as_json(targets: Sequence[Track], pool: Sequence[Track]) -> dict[str, Any]:
    """Time begins with the first round; what the pool did before is left out. Without rounds there are no events.

    Times are whole nanoseconds, told in microseconds: sums of durations stay exact, so slices nest.
    """
    origin = min((each.begin for track in targets for each in track.slices), default=None)
    if origin is None:
        return {"traceEvents": []}
    events: list[dict[str, Any]] = []
    for process, track in enumerate([*targets, *pool], start=1):
        place = {"pid": process, "tid": 1}
        events.append(place | {"ph": "M", "name": "process_name", "args": {"name": track.name}})
        for each in track.slices:
            begin, end = (round(1e9 * (moment - origin)) for moment in (each.begin, each.end))
            if begin >= 0:
                times = {"ts": begin / 1e3, "dur": (end - begin) / 1e3}
                events.append(place | times | {"ph": "X", "name": each.name, "args": dict(each.args)})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
