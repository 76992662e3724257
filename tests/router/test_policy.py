import pytest

from protocol.plan import BatchView, Mode, Plan, SequenceView, Speculation
from protocol.record import Origin, RoundRecord, RowRecord
from router.policy import PAUSE_MS, Ema, Fixed, Goodput, Off, Policy, granted
from router.tables import tables
from tests.router.curves import curves

DEPTH = 2


def view(*remaining: int) -> BatchView:
    return BatchView(tuple(SequenceView(num_tokens=9, remaining=r) for r in remaining))


def test_off_plans_no_draft():
    assert Off().plan(view(1, 5)) == Plan(None, (0, 0))


def test_fixed_drafts_its_length_and_never_past_the_end_of_a_sequence():
    assert Fixed(DEPTH, 4).plan(view(9, 5, 4, 2, 1)) == Plan(DEPTH, (4, 4, 3, 1, 0))


def test_a_plan_in_which_nobody_drafts_has_no_depth():
    assert Fixed(DEPTH, 4).plan(view(1, 1)) == Plan(None, (0, 0))
    assert Fixed(DEPTH, 0).plan(view(9)) == Plan(None, (0,))
    assert Fixed(DEPTH, 4).plan(view()) == Plan(None, ())


def test_lengths_without_a_depth_are_refused():
    with pytest.raises(ValueError, match="need a depth"):
        Plan(None, (0, 1))


def test_a_row_that_may_not_be_drafted_for_is_not():
    rows = (SequenceView(9, 50), SequenceView(9, 50, drafts=False))
    assert Fixed(DEPTH, 4).plan(BatchView(rows)) == Plan(DEPTH, (4, 0))


def ema() -> Ema:
    return Ema(tables(curves(layer=0.02, row=0.002, token=0.05), (2, 4), 8, 8))


def taught(policy: Policy, accepted: int, rounds: int) -> list[int]:
    """Longest lengths of rounds in which so many tokens are accepted, if so many were drafted."""
    lengths = []
    for number in range(rounds):
        plan = policy.plan(view(500, 500))
        lengths.append(max(plan.lengths))
        rows = [
            RowRecord(at, length, min(length, accepted), Origin.FRESH, plan.depth, length)
            for at, length in enumerate(plan.lengths)
        ]
        policy.observe(RoundRecord(number, plan, tuple(rows), 300.0, 2))
    return lengths


def test_the_moving_average_drafts_further_the_more_is_accepted_and_comes_back_from_off():
    assert taught(ema(), 8, 60)[-1] == 8
    hopeless = taught(ema(), 0, 120)
    assert hopeless[40:].count(0) > 70
    assert 1 <= sum(length > 0 for length in hopeless[40:]) <= 6


def test_what_a_request_asks_for_itself_takes_the_place_of_the_plan():
    rows = (
        SequenceView(9, 50),
        SequenceView(9, 3, asked=Speculation(6, 8)),
        SequenceView(9, 50, asked=Speculation(0, 0)),
    )
    plan = granted(BatchView(rows), Plan(DEPTH, (4, 4, 4)))
    assert (plan.lengths, plan.own) == ((4, 2, 0), (None, 6, None))


def test_a_router_decides_anew_when_the_batch_changes_and_keeps_its_plan_in_between():
    policy = Goodput(tables(curves(), (2, 4), 8, 8))
    taught(policy, 4, 60)
    while policy.decision.trial:
        taught(policy, 4, 1)
    before = policy.decision
    assert policy.plan(view(500, 500)) == policy.plan(view(500, 500))
    assert policy.decision is before
    policy.observe(
        RoundRecord(
            0,
            policy.plan(view(500, 500)),
            (RowRecord(0), RowRecord(1)),
            300.0,
            2,
            ended_s=PAUSE_MS / 1e3,
            verified_s=PAUSE_MS / 1e3,
        )
    )
    policy.plan(view(*[500] * 4))
    assert policy.decision is not before


@pytest.mark.parametrize(("before", "busy"), [(Mode.IN_TURN, False), (Mode.AHEAD, True)])
def test_a_round_in_turn_behind_one_ahead_finds_the_pool_busy(before: Mode, busy: bool) -> None:
    policy, depth = Goodput(tables(curves(), (2, 4), 8, 8)), 2
    for mode in (before, Mode.IN_TURN):
        row = RowRecord(0, 3, 2, Origin.FRESH, depth, 3, num_fed=1)
        policy.observe(RoundRecord(0, Plan(depth, (3,), mode=mode), (row,), 300.0, 3))
    assert policy.seen is not None
    assert (policy.seen.mode, policy.seen.num_rounds > 0, policy.seen.busy) == (Mode.IN_TURN, True, busy)
