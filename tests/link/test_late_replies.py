"""Answers that are late, partial, in pieces or somebody else's, and a pool that is slow: waited for within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from link.backoff import MISSES, PAUSES_S, SOON_S, Backoff
from link.share import Share
from link.transport import LinkedDraftClient
from protocol.draft import DraftReply, DraftRequest, DraftStatus, refusal
from protocol.plan import Plan
from targets.drafting import Drafting
from targets.sequence import Sequence as Decoding
from tests.deployments.harness import (
    DEPTH,
    TARGET,
    Clock,
    LoopThread,
    ScriptedPool,
    generate,
    request,
    wait_until,
)
from tests.link.rig import drafting_on

LATE_S = 0.05  # what is held back is late, however long that is


def read(drafts: LinkedDraftClient) -> Share:
    """What its only replica was asked last, once the link has been read."""
    (route,) = drafts._links.routes.values()
    assert route.share is not None
    route.link.read()
    return route.share


def missed_all(drafts: LinkedDraftClient, pool: ScriptedPool) -> None:
    """So many rounds that it is no longer waited for."""
    for round_id in range(MISSES):
        assert drafts.draft(request(round_id, (1, 0, 4))) is None
    wait_until(lambda: len(pool.worker.seen) == MISSES)


def seen_in_the_end(drafts: LinkedDraftClient, pool: ScriptedPool) -> list[int]:
    """The rounds that the pool was ever asked for: a close comes behind them."""
    drafts.close([77])
    wait_until(lambda: 77 in pool.worker.closed)
    return [asked.round_id for asked in pool.worker.seen]


def test_a_late_reply_is_dropped_when_it_comes(runner: LoopThread) -> None:
    pool = ScriptedPool(holds=True)
    with drafting_on(runner, pool, deadline_s=LATE_S) as drafts:
        assert drafts.draft(request(1, (1, 0, 4))) is None
        drafts._config = replace(drafts._config, deadline_s=30.0)
        wait_until(lambda: pool.worker.seen)
        pool.release()
        reply = drafts.draft(request(2, (1, 0, 5)))
        assert reply is not None
        assert (reply.round_id, reply.blocks[0].base_length) == (2, 5)


def partial(pool: ScriptedPool, drop: object) -> None:
    """Make the pool answer only a part of every request, or with another round's or base's blocks."""
    submit = pool.worker.submit

    def submit_changed(asked: object, reply: object) -> None:
        submit(asked, lambda full: reply(drop(full)))  # type: ignore[arg-type, operator]

    pool.worker.submit = submit_changed  # type: ignore[method-assign, assignment]


def test_at_the_deadline_what_has_come_is_returned(runner: LoopThread) -> None:
    pool = ScriptedPool()
    partial(pool, lambda full: replace(full, blocks=full.blocks[:2]))
    with drafting_on(runner, pool, deadline_s=LATE_S) as drafts:
        for round_id in range(MISSES + 2):
            asked = request(round_id, (1, 0, 4), (2, 0, 4), (3, 0, 4))
            shares = drafts._ask(asked)
            wait_until(lambda: read(drafts).num_drafted == 2)
            reply = drafts._answer(asked, shares)
            assert reply is not None
            assert [block.sequence_id for block in reply.blocks] == [1, 2]


@pytest.mark.parametrize("change", ["round", "base_length", "sequence"])
def test_a_reply_that_belongs_elsewhere_is_never_taken(runner: LoopThread, change: str) -> None:
    def elsewhere(full: DraftReply) -> DraftReply:
        block = full.blocks[0]
        return {
            "round": replace(full, round_id=full.round_id - 1),
            "base_length": replace(full, blocks=(replace(block, base_length=block.base_length - 1),)),
            "sequence": replace(full, blocks=(replace(block, sequence_id=99),)),
        }[change]

    pool = ScriptedPool()
    partial(pool, elsewhere)
    with drafting_on(runner, pool, deadline_s=LATE_S) as drafts:
        asked = request(5, (1, 0, 4))
        shares = drafts._ask(asked)
        wait_until(lambda: read(drafts).link.traffic.received_bytes)
        assert drafts._answer(asked, shares) is None


def test_a_pool_that_is_always_late_is_waited_for_three_times_only(runner: LoopThread) -> None:
    pool, clock = ScriptedPool(holds=True), Clock()
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        for round_id in range(2000):
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
        assert seen_in_the_end(drafts, pool) == list(range(MISSES))


def test_drafting_resumes_when_the_pool_is_fast_again(runner: LoopThread) -> None:
    pool, clock = ScriptedPool(holds=True), Clock()
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        missed_all(drafts, pool)
        pool.release()
        drafts._config = replace(drafts._config, deadline_s=30.0)
        assert drafts.draft(request(8, (1, 0, 4))) is None
        clock.now += PAUSES_S[0]
        assert drafts.draft(request(9, (1, 0, 4))) is None  # the probe
        wait_until(lambda: read(drafts).is_over)
        assert drafts.draft(request(10, (1, 0, 4)))
        assert seen_in_the_end(drafts, pool) == [*range(MISSES), 9, 10]


def test_a_slow_pool_that_refuses_at_once_is_not_taken_for_a_fast_one(runner: LoopThread) -> None:
    pool, clock = ScriptedPool(holds=True), Clock()
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        missed_all(drafts, pool)
        clock.now += PAUSES_S[0]
        assert drafts.draft(request(9, (2, 7, 9))) is None
        wait_until(lambda: read(drafts).is_over)  # NEED_CONTEXT is here, and the clock says that it is in time
        for round_id in range(10, 100):
            assert drafts.draft(request(round_id, (2, 0, 9))) is None
        assert seen_in_the_end(drafts, pool) == [*range(MISSES), 9]


def test_a_pool_that_forgets_and_is_slow_is_waited_for_three_times_only(
    runner: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sequences of a target that decodes on meanwhile, 5 rounds a second for 10 s."""
    missed, misses = Backoff.missed, []
    monkeypatch.setattr(Backoff, "missed", lambda self: misses.append(self) or missed(self))
    pool, clock = ScriptedPool(holds=True), Clock()
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        drafting = Drafting(drafts, TARGET, vocab_size=4096)
        sequences = [Decoding(index, generate(index), 4096) for index in range(2)]
        for _ in range(50):
            clock.now += 0.2
            assert drafting.draft(sequences, Plan(DEPTH, (3, 3))).rows == (None, None)
            pool.worker.known.clear()
            for sequence in sequences:
                sequence.commit([7])
        assert len(misses) == MISSES
        assert len(seen_in_the_end(drafts, pool)) < 20


@pytest.mark.parametrize(("waited_s", "rests"), [(0.8 * LATE_S, True), (0.1 * LATE_S, False)])
def test_a_pool_that_says_at_the_deadline_that_nothing_is_ready_is_as_late_as_one_that_says_nothing(
    runner: LoopThread, monkeypatch: pytest.MonkeyPatch, waited_s: float, rests: bool
) -> None:
    """And one that says so at once, since a context is yet to be read, is not late."""
    pool, clock = ScriptedPool(holds=True), Clock()

    def answered(shares: Sequence[Share], _: object) -> None:
        clock.now += waited_s
        for share in shares:
            blocks = tuple(refusal(row, DraftStatus.NOT_YET) for row in share.asked.rows)
            share.add(DraftReply(TARGET, share.asked.round_id, blocks), clock())

    monkeypatch.setattr("link.transport.wait_for", answered)
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        for round_id in range(MISSES):
            assert drafts.draft(request(round_id, (1, 0, 4)))
        assert (drafts.draft(request(MISSES, (1, 0, 4))) is None) is rests


@pytest.mark.parametrize(("answered_s", "soon"), [(0.1 * LATE_S, True), (0.9 * LATE_S, False)])
def test_a_probe_is_soon_followed_by_another_where_a_context_is_unread_and_not_where_time_ran_out(
    runner: LoopThread, answered_s: float, soon: bool
) -> None:
    """Both are NOT_YET: the one is said at once, the other at the pool's deadline."""
    pool, clock = ScriptedPool(holds=True), Clock()
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        missed_all(drafts, pool)
        clock.now += PAUSES_S[0]
        assert drafts.draft(request(8, (1, 0, 4))) is None  # the probe
        probe = read(drafts)
        clock.now += answered_s
        blocks = tuple(refusal(row, DraftStatus.NOT_YET) for row in probe.asked.rows)
        drafts._on_reply(probe.link, DraftReply(TARGET, 8, blocks))
        clock.now += 2 * SOON_S
        assert drafts.draft(request(9, (1, 0, 4))) is None
        assert (seen_in_the_end(drafts, pool)[-1] == 9) is soon


def test_rows_that_are_refused_at_once_do_not_hide_that_the_others_are_late(runner: LoopThread) -> None:
    pool, clock = ScriptedPool(holds=True), Clock()
    with drafting_on(runner, pool, clock=clock, deadline_s=LATE_S) as drafts:
        for round_id in range(MISSES):
            asked = request(round_id, (1, 0, 4), (8, 7, 9), (9, 7, 9))
            shares = drafts._ask(asked)
            wait_until(lambda: read(drafts).blocks)
            reply = drafts._answer(asked, shares)
            assert reply is not None
            assert [block.sequence_id for block in reply.blocks] == [8, 9]
        assert drafts.draft(request(MISSES, (1, 0, 4))) is None
        assert seen_in_the_end(drafts, pool) == list(range(MISSES))


def test_a_round_may_be_answered_in_several_messages_and_comes_in_the_order_of_its_rows(runner: LoopThread) -> None:
    pool = ScriptedPool()
    submit = pool.worker.submit

    def one_by_one(asked: DraftRequest, reply: Callable[[DraftReply], None]) -> None:
        submit(asked, lambda full: [reply(replace(full, blocks=(block,))) for block in full.blocks[::-1]] and None)

    pool.worker.submit = one_by_one  # type: ignore[method-assign]
    with drafting_on(runner, pool) as drafts:
        reply = drafts.draft(request(1, (1, 0, 4), (2, 0, 5), (3, 0, 6)))
        assert reply is not None
        assert [block.tokens for block in reply.blocks] == [(4, 5, 6), (5, 6, 7), (6, 7, 8)]


def test_a_busy_pool_answers_at_once(runner: LoopThread) -> None:
    pool = ScriptedPool(status=DraftStatus.BUSY)
    with drafting_on(runner, pool) as drafts:
        reply = drafts.draft(request(1, (1, 0, 4)))
        assert reply is not None
        assert [(block.status, block.tokens) for block in reply.blocks] == [(DraftStatus.BUSY, ())]
