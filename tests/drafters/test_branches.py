"""Drafting ahead against the obvious: every branch drafted from scratch behind its outcome, by a fresh drafter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from drafters.branches import Preparation, drafted_behind
from drafters.cached_tokens import CachedTokens
from drafters.limits import PoolLimits
from drafters.outcomes import Candidate, Guess
from drafters.pending import PendingBranches
from drafters.picks import PassRow, Pick
from drafters.row import Priority, Row
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, Branch, BranchSource
from tests.drafters.mirror import MirrorTarget, Verified
from tests.drafters.pool import DEEP, EXITS, GREEDY, SHALLOW, Pool, expected, row, text
from tests.sizes import quick


def played(
    llama: Decoder, seed: int, num_pages: int, page_size: int, num_turns: int, pass_rows: int = 128
) -> list[MirrorTarget]:
    """Two targets whose rounds overlap at random; in the end everything is free again."""
    rng = random.Random(seed)
    limits = PoolLimits(
        prefill_tokens=rng.choice([3, 8, 64]),
        max_ride=rng.choice([2, 8]),
        ahead=rng.choice([1, 3, 8]),
        branch_ahead=rng.choice([1, 2, 4]),
        pass_rows=pass_rows,
        beside_tokens=4,
        idle_s=0.0,
    )
    pool = Pool(llama, limits, num_pages, page_size)
    targets = [MirrorTarget(pool, llama, name, rng) for name in ("large", "small")]
    rule = DEEP
    for _ in range(num_turns):
        rule = rng.choice(EXITS) if rng.random() < 0.2 else rule
        for target in targets:
            target.turn(rule)
        pool.step()
    pool.run()
    for target in targets:
        target.take()
        assert not target.replies
        pool.worker.close(target.incarnation, list(target.texts))
    pool.worker.check()
    stats = pool.worker.stats()
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)
    assert stats.num_branches == sum(sum(target.num_from.values()) for target in targets)
    return targets


@pytest.mark.parametrize("seed", quick(range(4), 1))
def test_every_branch_is_what_a_fresh_drafter_says_behind_its_outcome_whatever_comes_in_between(
    llama: Decoder, seed: int
) -> None:
    targets = played(llama, seed, num_pages=1024, page_size=random.Random(seed).choice([1, 2, 4]), num_turns=60)
    for target in targets:
        assert min(target.num_from[source] for source in BranchSource) > 3
        assert target.num_hits > 3
        assert not target.num_refused
    assert sum(target.num_drafts for target in targets) > 5
    assert sum(target.num_reused for target in targets) > 0


@pytest.mark.parametrize("seed", quick(range(4), 1))
def test_where_pages_or_passes_run_short_there_are_fewer_branches_and_none_is_wrong(llama: Decoder, seed: int) -> None:
    targets = played(llama, seed, num_pages=40, page_size=8, num_turns=50, pass_rows=[128, 2, 5, 1][seed])
    assert all(sum(target.num_from.values()) > 3 for target in targets)


def test_branches_within_the_window_ride_with_the_lead_and_its_own_second_choice_comes_behind(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=2))
    one.ahead(length=3)
    assert [stats.num_rows for stats in one.pool.run()] == [4, 5, 1]
    by_source = {source: [own for own in one.branches if own.source is source] for source in BranchSource}
    assert [(own.key, own.tokens) for own in by_source[BranchSource.FULL]] == [one.behind(3, one.lead, 3)]
    runner_ups = [one.behind(accepted, one.second_choice(accepted), 3) for accepted in range(4)]
    assert sorted((own.key, own.tokens) for own in by_source[BranchSource.RUNNER_UP]) == sorted(runner_ups)
    assert one.pool.worker.stats().num_branches == 5


def test_half_a_branch_is_handed_over_before_the_whole(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=2))
    one.ahead(length=5)
    one.pool.run()
    parts: dict[int, list[Branch]] = {}
    for own in one.parts:
        parts.setdefault(own.key, []).append(own)
    assert len(parts) == 5
    for own in parts.values():
        assert [(len(part.tokens), part.goes_on) for part in own] == [(2, True), (4, True), (5, False)]
        assert all(longer.tokens[: len(part.tokens)] == part.tokens for part, longer in pairwise(own))
    assert len(one.replies[0].branches) == 4


@pytest.mark.parametrize(("token_ms", "num_tokens"), [(0.01, [5, 4]), (0.2, [5, 2, 2]), (2.0, [5, 1, 1, 1, 1])])
def test_what_is_left_behind_the_lead_is_drafted_in_passes_that_hold_up_nobody_for_long(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch, token_ms: float, num_tokens: list[int]
) -> None:
    one, taken = Verified(llama, PoolLimits(branch_ahead=4, branch_ms=0.5)), list[int]()
    run = one.pool.drafter.run

    def timed(rows: Sequence[PassRow]) -> list[list[Pick]]:
        picks = run(rows)
        taken.append(max(map(len, picks)))
        one.pool.clock.now += 1e-3 * token_ms * taken[-1]
        return picks

    monkeypatch.setattr(one.pool.drafter, "run", timed)
    one.pool.ask(row(2, text(9), 4))
    for _ in range(20):  # until it knows how slow it is
        one.pool.ask(row(2, [], 4, start=9))
    taken.clear()
    one.ahead(length=4)
    one.pool.run()
    assert taken == num_tokens
    assert len(one.branches) == 5


def test_only_so_many_branches_are_rolled_out_as_the_target_asked_for(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(fan_out=2)
    one.pool.run()
    assert len(one.branches) == 2
    assert one.replies[-1].num_left == 0


def test_an_empty_window_has_the_outcomes_of_its_lead(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(window=())
    one.pool.run()
    lead, second = one.window[0], one.second_choice(0)
    assert {(own.key, own.tokens) for own in one.branches} == {one.behind(0, lead, 2), one.behind(0, second, 2)}


def test_branches_are_handed_over_as_they_are_done_and_the_last_message_says_that_no_more_will_come(
    llama: Decoder,
) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1))
    first = AheadRow(row(1, [], 0, start=20), one.window, 1, 1)
    second = AheadRow(row(2, text(9, 2), 0), (), 3, 1)
    one.send(first, second)
    one.pool.run()
    assert [len(own.tokens) for own in one.branches] == [1, 3]
    told = [(len(reply.branches), reply.num_left) for reply in one.replies]
    assert told == [(2, 1), (1, 1), (1, 0)]


@pytest.mark.parametrize("accepted", range(4))
@pytest.mark.parametrize("is_full", [False, True])
def test_what_was_drafted_in_the_branch_that_came_true_is_not_drafted_again(
    llama: Decoder, accepted: int, is_full: bool
) -> None:
    one = Verified(llama)
    one.ahead(length=3)
    one.pool.run()
    new = [*one.window, one.lead] if is_full else [*one.window[:accepted], one.second_choice(accepted)]
    before = one.pool.worker.stats().num_drafted
    one.pool.submit(row(1, new, 3, start=20), round_id=7)
    assert one.pool.blocks(7)[1].tokens == expected(llama, [*one.tokens, *new], 3)
    one.pool.run()
    assert one.pool.worker.stats().num_drafted == before
    assert one.pool.ask(row(1, new, 5, start=20)).tokens == expected(llama, [*one.tokens, *new], 5)


def test_drafts_go_on_only_behind_what_they_were_drafted_behind() -> None:
    drafted = [Pick(token, 4, 0.5) for token in (3, 4, 5, 6)]
    assert drafted_behind((3, 4), drafted) == drafted[2:]
    assert drafted_behind((), drafted) == drafted
    assert not drafted_behind((3, 9), drafted)
    assert not drafted_behind((9, 4), drafted)
    assert not drafted_behind((3, 4, 5, 6, 7), drafted)


def test_a_draft_goes_on_from_a_branch_that_was_not_done(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1, ahead=1))
    one.ahead(length=4)
    for _ in range(2):
        one.pool.step()
    assert one.branches == []
    new, before = [*one.window[:1], one.second_choice(1)], one.pool.worker.stats().num_drafted
    assert one.pool.ask(row(1, new, 3, start=20)).tokens == expected(llama, [*one.tokens, *new], 3)
    assert one.pool.worker.stats().num_drafted == before + 1


def test_at_another_depth_or_with_other_sampling_it_is_drafted_again(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(length=3)
    one.pool.run()
    new = [*one.window, one.lead]
    assert one.pool.ask(row(1, new, 3, start=20), SHALLOW).tokens == expected(llama, [*one.tokens, *new], 3, SHALLOW)


def test_a_shorter_window_of_the_branch_that_came_true_leaves_the_rest_known(llama: Decoder) -> None:
    one = Verified(llama)
    one.ahead(length=4)
    one.pool.run()
    new = [*one.window, one.lead]
    following = expected(llama, [*one.tokens, *new], 4)
    before = one.pool.worker.stats().num_drafted
    one.replies.clear()
    one.send(AheadRow(row(1, new, 0, start=20), following[:2], 1, 8), round_id=2)
    one.pool.run()
    assert [own.tokens for own in one.branches if own.source is BranchSource.FULL] == [following[3:4]]
    assert one.pool.worker.stats().num_drafted == before + len(one.branches), "the lead in place of the full branch"


def test_a_draft_is_not_held_up_by_branches_that_ride_along(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(ahead=8, branch_ahead=8))
    one.ahead(length=8)
    one.pool.submit(row(2, [5], 2), round_id=9)
    stats = one.pool.step()
    assert stats is not None
    assert stats.num_rows == 5
    assert len(one.pool.blocks(9)[2].tokens) == 2
    assert one.branches == []


def test_the_context_of_a_draft_is_settled_before_that_of_what_is_drafted_ahead(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(prefill_tokens=32))
    one.send(AheadRow(row(3, text(90, 3), 0), (), 2, 2))
    one.pool.submit(row(2, text(33, 2), 1), round_id=9)
    one.pool.step()
    assert 2 in one.pool.blocks(9)


def test_a_draft_at_another_depth_goes_first(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(ahead=8))
    one.ahead()
    one.pool.submit(row(2, [5], 4), depth=SHALLOW, round_id=9)
    assert [stats.num_rows for stats in one.pool.run()] == [1, 4, 1]
    assert one.pool.blocks(9)[2].tokens == expected(llama, [5], 4, SHALLOW)


def test_nothing_of_a_branch_shows_its_tokens() -> None:
    own = AheadRow(row(1, [98765], 0), (98766,), 2, 2)
    candidate, pick = Candidate(1, 98767, BranchSource.FULL, 0.5), Pick(98768, 4, 0.5, 98769)
    cached = CachedTokens(("large", 1), 1, DEEP, GREEDY, 0.0, [98765, 98766], 1)
    trunk = Row(cached=cached, length=2, priority=Priority.AHEAD, picks=[pick, pick], lead=1)
    pending = PendingBranches(AheadRequest("large", 1, DEEP, (own,)), print)
    begun = {candidate.outcome: (candidate, trunk)}
    prepared = Preparation(pending, own, trunk, 2, [Guess(98766, 0.5, 98767)], [pick], begun)
    for one in (own, candidate, trunk, prepared, prepared.branch(candidate, trunk), Guess(98766, 0.5, 98767)):
        assert "987" not in repr(one)
