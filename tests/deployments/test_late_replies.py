"""Answers that are late, partial, in pieces or somebody else's, and a pool that is slow: waited for within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from deployments.backoff import MISSES, PAUSES_S
from protocol.draft import DraftReply, DraftRequest, DraftStatus
from protocol.plan import Plan
from targets.drafting import Drafting
from targets.sequence import Sequence as Decoding
from tests.deployments.harness import (
    DEPTH,
    TARGET,
    Directory,
    LoopThread,
    ScriptedPool,
    client,
    generate,
    request,
    wait_until,
)


def test_a_late_reply_is_dropped_when_it_comes(runner: LoopThread) -> None:
    pool = ScriptedPool(delay_s=1.5)
    with client(runner, Directory(pool), deadline_s=0.2) as drafts:
        wait_until(lambda: drafts.replica)
        began = time.monotonic()
        assert drafts.draft(request(1, (1, 0, 4))) is None
        assert time.monotonic() - began < 1.2
        time.sleep(1.5)
        pool.worker.delay_s = 0.0
        reply = drafts.draft(request(2, (1, 0, 5)))
        assert reply is not None
        assert (reply.round_id, reply.blocks[0].base_length) == (2, 5)
    pool.kill()


def partial(pool: ScriptedPool, drop: object) -> None:
    """Make the pool answer only a part of every request, or with another round's or base's blocks."""
    submit = pool.worker.submit

    def submit_changed(asked: object, reply: object) -> None:
        submit(asked, lambda full: reply(drop(full)))  # type: ignore[arg-type, operator]

    pool.worker.submit = submit_changed  # type: ignore[method-assign, assignment]


def test_at_the_deadline_what_has_come_is_returned(runner: LoopThread) -> None:
    pool = ScriptedPool()
    partial(pool, lambda full: replace(full, blocks=full.blocks[:2]))
    with client(runner, Directory(pool), deadline_s=0.5) as drafts:
        wait_until(lambda: drafts.replica)
        for round_id in range(MISSES + 2):
            reply = drafts.draft(request(round_id, (1, 0, 4), (2, 0, 4), (3, 0, 4)))
            assert reply is not None
            assert [block.sequence_id for block in reply.blocks] == [1, 2]
    pool.kill()


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
    with client(runner, Directory(pool), deadline_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        assert drafts.draft(request(5, (1, 0, 4))) is None
    pool.kill()


def test_a_pool_that_is_always_late_is_waited_for_three_times_only(runner: LoopThread) -> None:
    pool = ScriptedPool(delay_s=0.2)
    with client(runner, Directory(pool), deadline_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        began = time.monotonic()
        for round_id in range(2000):
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
        assert time.monotonic() - began < 20  # waiting for each would take 100 s
    pool.kill()


def test_drafting_resumes_when_the_pool_is_fast_again(runner: LoopThread) -> None:
    pool = ScriptedPool(delay_s=0.2)
    with client(runner, Directory(pool), deadline_s=0.1) as drafts:
        wait_until(lambda: drafts.replica)
        for round_id in range(MISSES):
            drafts.draft(request(round_id, (1, 0, 4)))
        pool.worker.delay_s = 0.0
        wait_until(lambda: drafts.draft(request(9, (1, 0, 4))) is not None)
    pool.kill()


class Clock:
    """Stands still unless a test moves it; deadlines are waited for in real time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_slow_pool_that_refuses_at_once_is_not_taken_for_a_fast_one(runner: LoopThread) -> None:
    pool, clock = ScriptedPool(delay_s=1.0), Clock()
    with client(runner, Directory(pool), clock=clock, deadline_s=0.5) as drafts:
        wait_until(lambda: drafts.replica)
        for round_id in range(MISSES):
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
        clock.now += PAUSES_S[0]
        assert drafts.draft(request(9, (2, 7, 9))) is None
        wait_until(lambda: pool.worker.seen[-1].round_id == 9)
        time.sleep(0.1)  # NEED_CONTEXT is here, within a deadline that the clock has not reached
        began = time.monotonic()
        for round_id in range(10, 100):
            assert drafts.draft(request(round_id, (2, 0, 9))) is None
        assert time.monotonic() - began < 0.4
    pool.kill()


def test_a_pool_that_forgets_and_is_slow_is_waited_for_three_times_only(runner: LoopThread) -> None:
    """Two sequences of a target that decodes on meanwhile, 5 rounds a second for 10 s."""
    pool, clock = ScriptedPool(delay_s=2.0), Clock()
    with client(runner, Directory(pool), clock=clock, deadline_s=0.5) as drafts:
        wait_until(lambda: drafts.replica)
        drafting, num_waits = Drafting(drafts, TARGET, vocab_size=4096), 0
        sequences = [Decoding(index, generate(index), 4096) for index in range(2)]
        for _ in range(50):
            clock.now += 0.2
            began = time.monotonic()
            assert drafting.draft(sequences, Plan(DEPTH, (3, 3))).blocks == (None, None)
            num_waits += time.monotonic() - began > 0.45
            pool.worker.known.clear()
            for sequence in sequences:
                sequence.commit([7])
        assert num_waits == MISSES
    pool.kill()


def test_rows_that_are_refused_at_once_do_not_hide_that_the_others_are_late(runner: LoopThread) -> None:
    pool = ScriptedPool(delay_s=2.0)
    with client(runner, Directory(pool), deadline_s=0.5) as drafts:
        wait_until(lambda: drafts.replica)
        for round_id in range(MISSES):
            reply = drafts.draft(request(round_id, (1, 0, 4), (8, 7, 9), (9, 7, 9)))
            assert reply is not None
            assert [block.sequence_id for block in reply.blocks] == [8, 9]
            wait_until(lambda: not pool.worker.busy)
        began = time.monotonic()
        assert drafts.draft(request(MISSES, (1, 0, 4))) is None
        assert time.monotonic() - began < 0.4
    pool.kill()


def test_a_round_may_be_answered_in_several_messages_and_comes_in_the_order_of_its_rows(runner: LoopThread) -> None:
    pool = ScriptedPool()
    submit = pool.worker.submit

    def one_by_one(asked: DraftRequest, reply: Callable[[DraftReply], None]) -> None:
        submit(asked, lambda full: [reply(replace(full, blocks=(block,))) for block in full.blocks[::-1]] and None)

    pool.worker.submit = one_by_one  # type: ignore[method-assign]
    with client(runner, Directory(pool)) as drafts:
        wait_until(lambda: drafts.replica)
        reply = drafts.draft(request(1, (1, 0, 4), (2, 0, 5), (3, 0, 6)))
        assert reply is not None
        assert [block.tokens for block in reply.blocks] == [(4, 5, 6), (5, 6, 7), (6, 7, 8)]
    pool.kill()


def test_a_busy_pool_answers_at_once(runner: LoopThread) -> None:
    pool = ScriptedPool(status=DraftStatus.BUSY)
    with client(runner, Directory(pool)) as drafts:
        wait_until(lambda: drafts.replica)
        reply = drafts.draft(request(1, (1, 0, 4)))
        assert reply is not None
        assert [(block.status, block.tokens) for block in reply.blocks] == [(DraftStatus.BUSY, ())]
    pool.kill()
