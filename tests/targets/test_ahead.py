"""Between messages and windows."""

from protocol.branch import AheadRequest, AheadRow, HintRow
from protocol.draft import DraftBlock, DraftRow, DraftStatus
from protocol.outcome import Probe
from protocol.plan import DepthRule, Plan
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.pipeline import Order, Source, Window
from targets.ahead import as_block, as_played, fresh_window, hint_of, joined, order_of, places_of
from targets.sequence import Sequence

SHALLOW, DEEP = DepthRule((2,)), DepthRule((4,))


def window(rule: DepthRule, length: int, source: Source | None = Source.FULL) -> Window:
    return Window(7, (1, 2), (2, 2), (0.5, 0.5), Order(rule, length), source)


def row(sequence_id: int, tokens: tuple[int, ...], depth: DepthRule | None = None) -> AheadRow:
    return AheadRow(DraftRow(sequence_id, 4, (1, 2, 3), 0, SamplingParams(), depth), tokens, 3, 4)


def test_a_policy_learns_under_the_plan_that_a_window_was_drafted_by() -> None:
    plan = Plan(SHALLOW, (5, 5, 5, 0))
    played = as_played(plan, [window(DEEP, 3), window(SHALLOW, 9), None, None])
    assert played.lengths == (3, 5, 5, 0)
    assert played.own == (DEEP, SHALLOW, SHALLOW, SHALLOW)


def test_a_plan_that_was_kept_is_left_as_it_is() -> None:
    plan = Plan(SHALLOW, (5, 5), floor=0.1)
    assert as_played(plan, [window(SHALLOW, 5), None]) == plan
    off = Plan(None, (0, 0))
    assert as_played(off, [None, None]) == off


def test_plans_of_two_batches_are_joined_and_every_row_keeps_its_rule() -> None:
    rows, more = Plan(SHALLOW, (5, 0), floor=0.1, probes=(1,)), Plan(DEEP, (3,))
    both = joined(rows, more)
    assert (both.depth, both.lengths, both.own, both.floor, both.probes) == (
        SHALLOW,
        (5, 0, 3),
        (None, None, DEEP),
        0.1,
        (1,),
    )
    assert joined(Plan(None, (0,)), more) == Plan(DEEP, (0, 3))
    assert joined(rows, Plan(None, ())) == rows
    assert joined(Plan(SHALLOW, (5, 5), (DEEP, None)), Plan(SHALLOW, (2,))).own == (DEEP, None, None)


def test_a_fresh_draft_is_a_window_with_the_order_it_was_drafted_by() -> None:
    block = DraftBlock(1, 7, DraftStatus.OK, (1, 2), (4, 4), (0.5, 0.5))
    made = fresh_window(Plan(SHALLOW, (0, 3), own=(None, DEEP)), 1, block)
    assert made == Window(7, (1, 2), (4, 4), (0.5, 0.5), Order(DEEP, 3))
    assert fresh_window(Plan(SHALLOW, (3,)), 0, None) is None
    assert fresh_window(Plan(SHALLOW, (3,)), 0, DraftBlock(1, 7, DraftStatus.BUSY)) is None


def test_a_window_at_hand_is_a_draft_that_keeps_what_a_probe_told() -> None:
    probe = Probe(3, (), ())
    asked = DraftBlock(1, 7, DraftStatus.OK, probe=probe)
    expected = DraftBlock(1, 7, DraftStatus.OK, (1, 2), (2, 2), (0.5, 0.5), probe)
    assert as_block(1, window(SHALLOW, 4), asked) == expected
    assert as_block(1, window(SHALLOW, 4), None).probe is None


def test_a_hint_has_the_picks_of_the_rows_that_were_asked_for() -> None:
    members = [Sequence(n, GenerateRequest(str(n), (1,), SamplingParams(), StopRules(9)), 99) for n in range(3)]
    request = AheadRequest("engine", 5, SHALLOW, (row(0, (8, 9)), row(2, (), DEEP)))
    assert places_of(request, members, [3, 2, 1]) == [0, 1, 2, 5]
    hint = hint_of(request, [(1,), (2,), (3,), (4,)])
    assert (hint.incarnation, hint.round_id) == ("engine", 5)
    assert hint.rows == (HintRow(0, 7, ((1,), (2,), (3,))), HintRow(2, 7, ((4,),)))
    assert [order_of(request, own) for own in request.rows] == [Order(SHALLOW, 3, 5), Order(DEEP, 3, 5)]
