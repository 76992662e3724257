"""Drafting ahead against the obvious: every branch drafted from scratch behind its outcome, by a fresh drafter."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from drafters.branches import PendingBranches, behind, drafted_behind
from drafters.cached_tokens import CachedTokens
from drafters.limits import PoolLimits
from drafters.picks import Pick
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, BranchReply
from tests.drafters.ahead import AheadTarget, Verified
from tests.drafters.pool import DEEP, EXITS, GREEDY, SHALLOW, Pool, expected, row, text
from tests.sizes import quick


def played(
    llama: Decoder, seed: int, num_pages: int, page_size: int, num_turns: int, pass_rows: int = 128
) -> list[AheadTarget]:
    """Two targets whose rounds overlap at random; in the end everything is free again."""
    rng = random.Random(seed)
    limits = PoolLimits(
        prefill_tokens=rng.choice([3, 8, 64]),
        max_ride=rng.choice([2, 8]),
        ahead=rng.choice([1, 3, 8]),
        branch_ahead=rng.choice([1, 2, 5]),
        pass_rows=pass_rows,
        beside_tokens=4,
        idle_s=0.0,
    )
    pool = Pool(llama, limits, num_pages, page_size)
    targets = [AheadTarget(pool, llama, name, rng) for name in ("large", "small")]
    depth = DEEP
    for _ in range(num_turns):
        depth = rng.choice(EXITS) if rng.random() < 0.2 else depth
        for target in targets:
            target.turn(depth)
        pool.step()
    pool.run()
    for target in targets:
        target.take()
        assert not target.replies
        pool.worker.close(target.incarnation, list(target.texts))
    pool.worker.check()
    stats = pool.worker.stats()
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)
    num_whole = sum(target.num_whole for target in targets)
    assert stats.num_branches == num_whole or (pool.is_small and stats.num_branches > num_whole), "some are cut"
    return targets


@pytest.mark.parametrize("seed", quick(range(8), 1))
def test_every_branch_is_what_a_fresh_drafter_says_behind_its_outcome_whatever_comes_in_between(
    llama: Decoder, seed: int
) -> None:
    targets = played(llama, seed, num_pages=1024, page_size=random.Random(seed).choice([1, 2, 4]), num_turns=80)
    for target in targets:
        assert target.num_whole > 3
        assert target.num_hits > 3
        assert not target.num_refused
    assert sum(target.num_drafts for target in targets) > 5
    assert sum(target.num_reused for target in targets) > 0


@pytest.mark.parametrize("seed", quick(range(4), 1))
def test_where_pages_or_passes_run_short_branches_are_short_and_none_is_wrong(llama: Decoder, seed: int) -> None:
    targets = played(llama, seed, num_pages=40, page_size=8, num_turns=70, pass_rows=[128, 2, 5, 1][seed])
    assert all(target.num_whole > 3 for target in targets)


def test_the_branch_begins_behind_the_proposal_and_one_more_token_of_the_drafter(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(length=3)
    assert [stats.num_rows for stats in one.pool.run()] == [1]
    assert [(own.key, own.tokens) for own in one.branches] == [one.behind(3)]
    assert one.branches[0].base_length == len(one.tokens) + len(one.window) + 1
    assert one.pool.worker.stats().num_branches == 1


def test_parts_come_as_they_are_drafted_each_with_the_one_before(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=2))
    one.ahead(length=4)
    one.pool.run()
    assert [len(part.tokens) for part in one.parts] == [1, 3, 4]
    assert [part.goes_on for part in one.parts] == [True, True, False]
    for before, after in pairwise(one.parts):
        assert (after.key, after.tokens[: len(before.tokens)]) == (before.key, before.tokens)
    assert (one.parts[-1].key, one.parts[-1].tokens) == one.behind(4)


def test_what_one_pass_drafted_comes_in_one_message(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=2))
    one.send(AheadRow(row(1, [], 0, start=20), one.window, 1), AheadRow(row(2, text(9, 2), 0), (), 3))
    one.pool.run()
    told = [[(part.sequence_id, len(part.tokens)) for part in reply.branches] for reply in one.replies]
    assert told == [[(1, 1), (2, 1)], [(2, 3)]]


def test_a_prompt_that_ends_has_its_first_proposal_behind_its_lead(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(window=())
    one.pool.run()
    before = [*one.tokens, one.window[0]]
    assert [(own.base_length, own.tokens) for own in one.branches] == [(21, expected(llama, before, 2))]


def test_a_draft_stops_in_doubt_as_one_that_is_waited_for_and_the_lead_does_not_count(llama: Decoder) -> None:
    one = Verified(llama)
    one.send(AheadRow(row(1, [], 0, start=20), one.window, 8, stop_probability=1.0))
    one.pool.run()
    assert [(len(own.tokens), own.goes_on) for own in one.branches] == [(1, False)]


@pytest.mark.parametrize("length", [1, 3, 5])
def test_what_was_drafted_ahead_and_came_true_is_not_drafted_again(llama: Decoder, length: int) -> None:
    one = Verified(llama)
    one.ahead(length=3)
    one.pool.run()
    new, before = [*one.window, one.lead], one.pool.worker.stats().num_drafted
    assert one.pool.ask(row(1, new, length, start=20)).tokens == expected(llama, [*one.tokens, *new], length)
    assert one.pool.worker.stats().num_drafted == before + max(length - 3, 0)


@pytest.mark.parametrize("accepted", range(4))
def test_behind_any_other_outcome_it_is_forgotten(llama: Decoder, accepted: int) -> None:
    one = Verified(llama)
    one.ahead(length=3)
    one.pool.run()
    other = next(token for token in range(9) if token != [*one.window, one.lead][accepted])
    new, before = [*one.window[:accepted], other], one.pool.worker.stats().num_drafted
    assert one.pool.ask(row(1, new, 3, start=20)).tokens == expected(llama, [*one.tokens, *new], 3)
    assert one.pool.worker.stats().num_drafted == before + 3


def test_a_draft_goes_on_from_a_branch_that_was_not_done(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1, ahead=1))
    one.ahead(length=4)
    for _ in range(3):
        one.pool.step()
    assert [(len(own.tokens), own.goes_on) for own in one.parts] == [(1, True), (2, True)]
    new, before = [*one.window, one.lead], one.pool.worker.stats().num_drafted
    assert one.pool.ask(row(1, new, 3, start=20)).tokens == expected(llama, [*one.tokens, *new], 3)
    assert one.pool.worker.stats().num_drafted == before + 1


def test_at_another_depth_or_with_other_sampling_it_is_drafted_again(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(length=3)
    one.pool.run()
    new = [*one.window, one.lead]
    assert one.pool.ask(row(1, new, 3, start=20), SHALLOW).tokens == expected(llama, [*one.tokens, *new], 3, SHALLOW)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_shorter_window_of_what_came_true_leaves_the_rest_known(llama: Decoder, length: int) -> None:
    """Of four tokens two are verified: the lead behind them is known, and the first token behind that."""
    one = Verified(llama)
    one.ahead(length=4)
    one.pool.run()
    new = [*one.window, one.lead]
    following = expected(llama, [*one.tokens, *new], 9)
    before = one.pool.worker.stats().num_drafted
    one.replies.clear()
    one.send(AheadRow(row(1, new, 0, start=20), following[:2], length), round_id=2)
    assert (length == 1) is bool(one.branches), "at once where nothing is missing"
    one.pool.run()
    assert [own.tokens for own in one.branches] == [following[3 : 3 + length]]
    assert one.pool.worker.stats().num_drafted == before + length - 1


def test_drafts_go_on_only_behind_what_they_were_drafted_behind() -> None:
    drafted = [Pick(token, 0.5) for token in (3, 4, 5, 6)]
    assert drafted_behind((3, 4), drafted) == drafted[2:]
    assert drafted_behind((), drafted) == drafted
    assert not drafted_behind((3, 9), drafted)
    assert not drafted_behind((9, 4), drafted)
    assert not drafted_behind((3, 4, 5, 6, 7), drafted)


def test_a_draft_is_not_held_up_by_what_rides_along(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(ahead=8, branch_ahead=8))
    one.ahead(length=8)
    one.pool.submit(row(2, [5], 2), round_id=9)
    stats = one.pool.step()
    assert stats is not None
    assert stats.num_rows == 2
    assert len(one.pool.blocks(9)[2].tokens) == 2
    assert [len(own.tokens) for own in one.parts] == [1]


def test_the_context_of_a_draft_is_settled_before_that_of_what_is_drafted_ahead(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(prefill_tokens=32))
    one.send(AheadRow(row(3, text(90, 3), 0), (), 2))
    one.pool.submit(row(2, text(33, 2), 1), round_id=9)
    one.pool.step()
    assert 2 in one.pool.blocks(9)


def test_a_draft_at_another_depth_goes_first(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(ahead=8))
    one.ahead()
    one.pool.submit(row(2, [5], 4), depth=SHALLOW, round_id=9)
    assert [stats.num_rows for stats in one.pool.run()] == [1, 1]
    assert one.pool.blocks(9)[2].tokens == expected(llama, [5], 4, SHALLOW)


def test_nothing_of_a_branch_shows_its_tokens() -> None:
    def sent(reply: BranchReply) -> None:
        replies.append(reply)

    replies: list[BranchReply] = []
    asked = AheadRow(row(1, [98765], 0), (98766,), 2)
    cached = CachedTokens(("large", 1), 1, DEEP, GREEDY, 0.0, [98765, 98766], 1)
    request = PendingBranches(AheadRequest("large", 1, DEEP, (asked,)), sent)
    own = behind(request, asked, cached, 2, [Pick(98766, 0.5), Pick(98767, 0.5), Pick(98768, 0.5)])
    assert [pick.token for pick in own.picks] == [98767, 98768]
    own.sink.tell(own)  # type: ignore[attr-defined]
    request.reply()
    for one in (asked, own, own.sink, *replies, *replies[0].branches):
        assert "987" not in repr(one)
