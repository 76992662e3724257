from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest

from api.trace import Track, as_json, by_exit, passes, rounds
from protocol.plan import Mode, Plan
from protocol.record import Origin, RoundRecord, RowRecord
from protocol.stats import PassStats

SEEDS = range(20)


def random_row(rng: random.Random) -> RowRecord:
    origin, num_proposed = rng.choice((None, *Origin)), rng.randrange(1, 5)
    if origin is None:
        return RowRecord(1)
    return RowRecord(1, num_proposed, rng.randint(0, num_proposed), origin, 2, 4)


def random_records(rng: random.Random, count: int = 10) -> list[RoundRecord]:
    """Rounds one after another, from a moment late in a machine's life. Each begins as the last one's pass ends."""
    made, now = [], 1e6 * rng.random()
    began = now
    for index in range(count):
        moments = [now := now + rng.choice((0.0, 1e-6, 1e-3)) * rng.random() for _ in range(4)]
        planned, drafted, verified, ended = moments
        rows = tuple(random_row(rng) for _ in range(rng.randrange(4)))
        made.append(
            RoundRecord(
                round_id=index,
                plan=Plan(2, (4,) * len(rows), mode=rng.choice(list(Mode))),
                rows=rows,
                context=9.0,
                num_committed=rng.randrange(9),
                num_prefill_tokens=rng.randrange(3),
                began_s=began,
                planned_s=planned,
                drafted_s=drafted,
                verified_s=verified,
                ended_s=ended,
            )
        )
        began = verified
    return made


def slices(trace: dict[str, Any], process: int = 1) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == process]


def by_round(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Each with its parts behind it."""
    found: list[list[dict[str, Any]]] = []
    for event in events:
        if event["name"].startswith("round "):
            found.append([])
        found[-1].append(event)
    return found


def end(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_lie_end_to_end_inside_their_round_and_add_up_to_it(seed: int) -> None:
    records = random_records(random.Random(seed))
    trace = json.loads(json.dumps(as_json([Track("target", rounds(records))], [])))
    found = by_round(slices(trace))
    assert len(found) == len(records)
    assert found[0][0]["ts"] == 0
    for record, (whole, *parts) in zip(records, found, strict=True):
        assert parts[0]["ts"] == whole["ts"]
        assert end(parts[-1]) == pytest.approx(end(whole), abs=1e-3)  # a nanosecond
        for before, after in pairwise(parts):
            assert end(before) == pytest.approx(after["ts"], abs=1e-3)
        assert sum(part["dur"] for part in parts) == pytest.approx(whole["dur"], abs=1e-3)
        assert whole["ts"] + whole["dur"] == pytest.approx(1e6 * (record.ended_s - records[0].began_s), abs=1e-2)
    for (before, *_), (after, *_) in pairwise(found):
        assert end(before) <= after["ts"] + 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_round_tells_its_parts_and_counts(seed: int) -> None:
    records = random_records(random.Random(seed))
    for record, (whole, *parts) in zip(
        records, by_round(slices(as_json([Track("target", rounds(records))], []))), strict=True
    ):
        assert [part["name"] for part in parts] == ["plan", "draft", "verify", "commit"]
        assert whole["name"] == f"round {record.round_id} {record.plan.mode.value}"
        args = whole["args"]
        assert sum(args["origins"].values()) == sum(row.origin is not None for row in record.rows)
        assert set(args["origins"]) <= {origin.value for origin in Origin}
        assert (sum(args["proposed"]), sum(args["accepted"])) == (record.num_proposed, record.num_accepted)
        assert (args["depth"], args["lengths"]) == (2, [4] * len(record.rows))
        assert (args["committed"], args["prefill_tokens"]) == (record.num_committed, record.num_prefill_tokens)


def test_acceptance_by_exit_counts_no_token_behind_a_refused_one() -> None:
    one = RowRecord(1, 4, 2, Origin.FRESH, 2, 4)
    whole = RowRecord(2, 2, 2, Origin.FRESH, 4, 2)
    assert by_exit([one, whole, RowRecord(3)]) == {"2": (3, 2), "4": (2, 2)}


def test_replicas_share_one_time_and_what_the_pool_did_before_the_first_round_is_left_out() -> None:
    records = random_records(random.Random(1))
    early, late = rounds(records[:5]), rounds(records[5:])
    began = records[0].began_s
    done = passes([(began - 1.0, PassStats(1, 1, 0, 5.0)), (began + 0.006, PassStats(3, 2, 7, 5.0))])
    trace = as_json([Track("a", early), Track("b", late)], [Track("pool", done)])
    names = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert names == {1: "a", 2: "b", 3: "pool"}
    (one,) = slices(trace, 3)
    assert (one["ts"], one["dur"]) == (pytest.approx(1000, abs=1e-2), pytest.approx(5000, abs=1e-2))
    assert one["args"] == {"rows": 3, "targets": 2, "prefill_tokens": 7}
    shift = records[5].began_s - began
    assert slices(trace, 2)[0]["ts"] == pytest.approx(1e6 * shift, abs=1e-2)


def test_without_rounds_there_is_no_event() -> None:
    assert as_json([Track("a", ())], [Track("pool", passes([(1.0, PassStats())]))]) == {"traceEvents": []}
