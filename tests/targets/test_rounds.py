"""What is folded over the records of rounds, against the obvious sums."""

from __future__ import annotations

import random

import pytest

from protocol.plan import Mode, Plan
from protocol.record import Origin, RoundRecord, RowRecord
from protocol.stats import RoundStats
from targets.confidence import Calibration
from targets.rounds import ENOUGH, UNCOUNTED, Rounds

DEPTH = 2


def row(rng: random.Random) -> RowRecord:
    count = rng.randint(0, 4)
    if not count:
        return RowRecord(1)
    sure = tuple(rng.random() for _ in range(count))
    return RowRecord(1, count, rng.randint(0, count), rng.choice(list(Origin)), rng.choice((2, 4)), 4, sure)


def random_record(rng: random.Random, round_id: int) -> RoundRecord:
    rows = tuple(row(rng) for _ in range(rng.randint(0, 4)))
    lengths = tuple(4 * bool(each.num_proposed or rng.random() < 0.5) for each in rows)
    plan = Plan(DEPTH if any(lengths) else None, lengths, mode=rng.choice(list(Mode)))
    drafted, answered = 1.0 + rng.random(), rng.random() < 0.9
    return RoundRecord(
        round_id, plan, rows, 9.0, rng.randint(0, 9), answered=answered, planned_s=1.0, drafted_s=drafted
    )


@pytest.mark.parametrize("seed", range(10))
def test_totals_are_sums_over_the_records(seed: int) -> None:
    rng, rounds = random.Random(seed), Rounds()
    records = [random_record(rng, index) for index in range(3 * UNCOUNTED + 8)]
    for record in records:
        rounds.add(record)
    totals, rows = rounds.totals, [each for record in records for each in record.rows]
    assert (rounds.last()[-60:], rounds.last(7), rounds.num_failures) == (tuple(records[-60:]), tuple(records[-7:]), 0)
    assert totals.num_proposed == sum(each.num_proposed for each in rows)
    assert totals.num_accepted == sum(each.num_accepted for each in rows)
    positions = range(max(each.num_proposed for each in rows))
    assert totals.num_accepted_by_position == tuple(sum(each.num_accepted > at for each in rows) for at in positions)
    assert sum(totals.num_accepted_by_position) == totals.num_accepted
    assert totals.num_drafts == sum(each.origin is not None for each in rows)
    assert totals.num_hits == sum(each.origin is Origin.AHEAD for each in rows)
    assert totals.num_unanswered == sum(not record.answered for record in records)
    ahead = [record for record in records if record.plan.mode is not Mode.IN_TURN]
    pairs = [pair for record in ahead for pair in zip(record.plan.lengths, record.rows, strict=True)]
    assert totals.num_misses == sum(length > 0 and not each.at_hand for length, each in pairs)
    assert totals.draft_ms == pytest.approx(sum(record.draft_ms for record in records))


def test_positions_are_counted_from_the_first_proposal_that_long() -> None:
    def record(num_proposed: int, num_accepted: int) -> RoundRecord:
        row = RowRecord(1, num_proposed, num_accepted, Origin.FRESH, DEPTH, num_proposed)
        return RoundRecord(0, Plan(DEPTH, (num_proposed,)), (row,), 9.0, 1 + num_accepted)

    totals = RoundStats().plus([record(1, 1), record(2, 1)])
    assert totals.num_accepted_by_position == (2, 0)
    assert totals.plus([record(4, 3), record(1, 0)]).num_accepted_by_position == (3, 1, 1, 0)


def test_records_that_cannot_be_counted_are_left_out_and_later_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, records = Rounds(), [RoundRecord(index, Plan(None, (0,)), (RowRecord(1),), 9.0, 1) for index in range(90)]
    with monkeypatch.context() as broken:
        broken.setattr(RoundStats, "plus", None)
        for record in records[:UNCOUNTED]:
            rounds.add(record)
    for record in records[UNCOUNTED:]:
        rounds.add(record)
    assert (rounds.totals.num_rounds, rounds.num_failures) == (90 - UNCOUNTED, 1)


def test_confidence_is_calibrated_by_the_tokens_up_to_the_first_refused_one_at_each_depth() -> None:
    sure = (0.9, 0.8, 0.7, 0.6)
    one = RowRecord(1, 4, 1, Origin.FRESH, DEPTH, 4, sure)
    other = RowRecord(2, 4, 4, Origin.AHEAD, 4, 4, sure)
    forced = RowRecord(3, 2, 2, Origin.FORCED, num_forced=2)
    rounds = Rounds()
    for index in range(ENOUGH // 2):
        assert rounds.calibration.power(2) == 1.0
        rounds.add(RoundRecord(index, Plan(DEPTH, (4, 4, 4)), (one, other, forced), 9.0, 2))
    expected = Calibration().learned(2, sure[:2] * (ENOUGH // 2), [True, False] * (ENOUGH // 2))
    assert rounds.calibration.power(2) == expected.power(2) != 1.0
    assert rounds.calibration.seen == {DEPTH: ENOUGH, 4: 2 * ENOUGH}
