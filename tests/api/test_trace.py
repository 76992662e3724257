from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest

from api.trace import Track, as_json, passes, rounds
from protocol.stats import PassStats
from router.modes import Mode
from router.pipeline import Source
from targets.step import Marks
from targets.timeline import RoundRecord

SEEDS = range(20)


def random_records(rng: random.Random, count: int = 10) -> list[RoundRecord]:
    """Rounds one after another, from a moment late in a machine's life."""
    made, now = [], 1e6 * rng.random()
    for index in range(count):
        moments = [now := now + rng.choice((0.0, 1e-6, 1e-3)) * rng.random() for _ in range(8)]
        began, planned, looked, drafted, early, hinted, verified, ended = moments
        num_rows = rng.randrange(4)
        half = rng.random() < 0.7
        made.append(
            RoundRecord(
                round_id=index,
                mode=rng.choice(list(Mode)),
                marks=Marks(began, planned, drafted, verified),
                looked=looked,
                early=early if half else None,
                hinted=hinted if half else None,
                hits=tuple(rng.choice((None, *Source)) for _ in range(num_rows)),
                lengths=tuple(rng.randrange(5) for _ in range(num_rows)),
                num_committed=rng.randrange(9),
                num_prefill_tokens=rng.randrange(3),
                waited=rng.random() < 0.5,
                ended=ended,
            )
        )
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
        assert whole["dur"] == pytest.approx(1e6 * (record.ended - record.marks.began), abs=2e-3)
    for (before, *_), (after, *_) in pairwise(found):
        assert end(before) <= after["ts"] + 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_round_tells_its_parts_and_counts(seed: int) -> None:
    records = random_records(random.Random(seed))
    for record, (whole, *parts) in zip(
        records, by_round(slices(as_json([Track("target", rounds(records))], []))), strict=True
    ):
        wait = ["wait"] if record.waited else []
        layers = ["prefix layers", "hint", "suffix layers"] if record.hinted else ["layers"]
        assert [part["name"] for part in parts] == ["plan", "resolve", *wait, *layers, "commit"]
        assert whole["name"] == f"round {record.round_id} {record.mode.value}"
        args = whole["args"]
        assert sum(args["hits"].values()) == sum(source is not None for source in record.hits)
        assert set(args["hits"]) <= {"full", "runner_up", "early_exit", "rest"}
        assert args["lengths"] == list(record.lengths)
        assert (args["committed"], args["prefill_tokens"]) == (record.num_committed, record.num_prefill_tokens)


def test_replicas_share_one_time_and_what_the_pool_did_before_the_first_round_is_left_out() -> None:
    records = random_records(random.Random(1))
    early, late = rounds(records[:5]), rounds(records[5:])
    began = records[0].marks.began
    done = passes([(began - 1.0, PassStats(1, 1, 0, (), 5.0)), (began + 0.006, PassStats(3, 2, 7, (), 5.0))])
    trace = as_json([Track("a", early), Track("b", late)], [Track("pool", done)])
    names = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert names == {1: "a", 2: "b", 3: "pool"}
    (one,) = slices(trace, 3)
    assert (one["ts"], one["dur"]) == (pytest.approx(1000, abs=1e-2), pytest.approx(5000, abs=1e-2))
    assert one["args"] == {"rows": 3, "targets": 2, "prefill_tokens": 7}
    shift = records[5].marks.began - began
    assert slices(trace, 2)[0]["ts"] == pytest.approx(1e6 * shift, abs=1e-2)


def test_without_rounds_there_is_no_event() -> None:
    assert as_json([Track("a", ())], [Track("pool", passes([(1.0, PassStats())]))]) == {"traceEvents": []}
