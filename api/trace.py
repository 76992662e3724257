"""Rounds and passes as a picture, in the trace-event JSON that Perfetto and Chrome's tracing page open.

A replica is a process with one track. On a target's a round is a slice, with its parts inside, end to end:

    plan | draft | first layers | other layers | commit

`draft` ends when the proposals are there. A pass without early picks is one slice, `verify`. On a draft
replica's a pass is a slice, so one sees what was drafted while what was verified. All clocks are those of the machine,
so replicas on several nodes are each right and shifted against each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from protocol.record import RoundRecord
from protocol.stats import PassStats

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """begin, end: seconds of a monotonic clock. args: what the picture tells beside it, as JSON takes it."""

    name: str
    begin: float
    end: float
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Track:
    """Of one replica, in order; a slice that lies inside another follows it."""

    name: str
    slices: tuple[Slice, ...]


def rounds(records: Sequence[RoundRecord]) -> tuple[Slice, ...]:
    """A round begins when the pass before it ends, and is drawn from when that one's tokens are committed."""
    begins = [record.began_s for record in records[:1]] + [
        max(record.began_s, before.ended_s) for before, record in pairwise(records)
    ]
    return tuple(
        each
        for begin, record in zip(begins, records, strict=True)
        for each in (_whole(record, begin), *_parts(record, begin))
    )


def passes(ended: Sequence[tuple[float, PassStats]]) -> tuple[Slice, ...]:
    """ended: when each pass did, and its counts."""
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
    """Time begins with the first round; what the pool did before is left out. Without rounds there are no events."""
    begins = [each.begin for track in targets for each in track.slices]
    if not begins:
        return {"traceEvents": []}
    events: list[Event] = []
    for process, track in enumerate([*targets, *pool], start=1):
        events += _events(track, process, min(begins))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _whole(record: RoundRecord, begin: float) -> Slice:
    args = {
        "origins": dict(Counter(row.origin.value for row in record.rows if row.origin)),
        "proposed": [row.num_proposed for row in record.rows],
        "accepted": [row.num_accepted for row in record.rows],
        "committed": record.num_committed,
        "prefill_tokens": record.num_prefill_tokens,
    }
    return Slice(f"round {record.round_id} {record.plan.mode.value}", begin, record.ended_s, args)


def _parts(record: RoundRecord, begin: float) -> Iterator[Slice]:
    ends = [("plan", record.planned_s), ("draft", record.drafted_s)]
    if record.early_s is None:
        ends += [("verify", record.verified_s)]
    else:
        ends += [("first layers", record.early_s), ("other layers", record.verified_s)]
    for name, end in [*ends, ("commit", record.ended_s)]:
        yield Slice(name, begin, end, {})
        begin = end


def _events(track: Track, process: int, origin: float) -> Iterator[Event]:
    """Whole nanoseconds, told in microseconds: sums of durations stay exact, so slices nest."""
    own = {"pid": process, "tid": 1}
    yield own | {"ph": "M", "name": "process_name", "args": {"name": track.name}}
    for each in track.slices:
        begin, end = (round(1e9 * (moment - origin)) for moment in (each.begin, each.end))
        if begin >= 0:
            yield own | {
                "ph": "X",
                "name": each.name,
                "ts": begin / 1e3,
                "dur": (end - begin) / 1e3,
                "args": dict(each.args),
            }
