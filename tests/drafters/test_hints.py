"""Early picks of a target, on their way to what is drafted ahead: which branches they begin and end."""

from __future__ import annotations

from drafters.limits import PoolLimits
from model.decoder import Decoder
from protocol.branch import BranchSource, ExitHint, HintRow
from tests.drafters.mirror import Verified


def test_a_hint_begins_what_the_target_is_likely_to_pick_and_ends_what_it_is_not(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1))
    pick = next(token for token in range(160) if token not in (one.window[0], one.second_choice(0)))
    one.ahead(length=3, fan_out=2)
    one.pool.step()
    one.pool.step()
    assert one.branches == []
    one.hint((pick,), (5,), (5,), (5,))
    one.pool.run()
    early = [own for own in one.branches if own.source is BranchSource.EARLY_EXIT]
    assert one.behind(0, pick, 3) in [(own.key, own.tokens) for own in early]
    assert len(one.branches) == 2


def test_a_hint_brings_more_branches_when_all_were_handed_over_before_it(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(fan_out=2)
    one.pool.run()
    assert (len(one.branches), one.replies[-1].num_left) == (2, 0)
    one.hint((one.window[0], 3), (one.window[1], 4), (one.window[2], 5), (6,))
    one.pool.run()
    assert 2 < len(one.branches) <= 4
    assert len({own.key for own in one.branches}) == len(one.branches)
    assert one.replies[-1].num_left == 0


def test_a_hint_that_changes_nothing_is_no_message(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead()
    one.pool.run()
    one.replies.clear()
    one.hint((one.window[0],), (one.window[1],))
    one.pool.run()
    assert one.replies == []


def test_a_hint_may_come_before_the_lead(llama: Decoder) -> None:
    one = Verified(llama)
    pick = next(token for token in range(160) if token not in (one.window[0], one.second_choice(0)))
    one.ahead(fan_out=3)
    one.hint((pick, 900, -1))
    one.pool.run()
    assert one.behind(0, pick, 2) in [(own.key, own.tokens) for own in one.branches]
    assert len(one.branches) == 3


def test_a_hint_of_another_round_or_another_place_is_nothing(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(round_id=2)
    one.hint((5,), (5,), (5,), (5,), round_id=1)
    one.pool.worker.hint(ExitHint("large", 2, (HintRow(1, 19, ((5,),)), HintRow(77, 20, ((5,),)))))
    one.pool.run()
    assert BranchSource.EARLY_EXIT not in {own.source for own in one.branches}
