import pytest

from protocol.plan import BatchView, DepthRule, Plan, SequenceView
from router.policy import Fixed, Off

RULE = DepthRule((2, 4), (0.5,))


def view(*remaining: int) -> BatchView:
    return BatchView(tuple(SequenceView(num_tokens=9, remaining=r) for r in remaining))


def test_off_plans_no_draft():
    assert Off().plan(view(1, 5)) == Plan(None, (0, 0))


def test_fixed_drafts_its_length_and_never_past_the_end_of_a_sequence():
    assert Fixed(RULE, 4).plan(view(9, 5, 4, 2, 1)) == Plan(RULE, (4, 4, 3, 1, 0))


def test_a_plan_in_which_nobody_drafts_has_no_depth():
    assert Fixed(RULE, 4).plan(view(1, 1)) == Plan(None, (0, 0))
    assert Fixed(RULE, 0).plan(view(9)) == Plan(None, (0,))
    assert Fixed(RULE, 4).plan(view()) == Plan(None, ())


def test_lengths_without_a_depth_are_refused():
    with pytest.raises(ValueError, match="need a depth"):
        Plan(None, (0, 1))


@pytest.mark.parametrize(
    ("exits", "thresholds"), [((), ()), ((4, 2), (0.5,)), ((2, 2), (0.5,)), ((2, 4), ()), ((2,), (0.5,))]
)
def test_a_ladder_must_ascend_and_have_a_threshold_between_rungs(exits, thresholds):
    with pytest.raises(ValueError, match=r"ascend|thresholds"):
        DepthRule(exits, thresholds)
