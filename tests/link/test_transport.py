from __future__ import annotations

import threading
import time

import pytest

from link.backoff import MISSES, PAUSES_S, RECOVERED, SOON_S, Ask, Backoff
from link.discovery import Found, Need, PoolMember
from link.listening import bind
from link.pool_thread import PoolThread
from link.transport import LinkedDraftClient
from protocol.draft import DraftStatus
from protocol.errors import ConfigError
from protocol.limits import MessageLimits
from tests.deployments.harness import Directory, LoopThread, ScriptedPool, ScriptedWorker, client, member, request
from tests.deployments.harness import wait_until as wait

LIMITS = MessageLimits()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def missed_three_times(clock: Clock) -> Backoff:
    backoff = Backoff(clock)
    for _ in range(MISSES):
        assert backoff.ask() is Ask.WAIT
        backoff.missed()
    return backoff


def test_three_missed_deadlines_end_the_waiting_and_pauses_grow_to_half_a_minute() -> None:
    clock = Clock()
    backoff = missed_three_times(clock)
    for pause in (*PAUSES_S, PAUSES_S[-1], PAUSES_S[-1]):
        assert backoff.ask() is Ask.SKIP
        clock.now += pause - 0.01
        assert backoff.ask() is Ask.SKIP
        clock.now += 0.02
        assert backoff.ask() is Ask.PROBE


def seconds_until_the_next_probe(backoff: Backoff, clock: Clock) -> float:
    began = clock.now
    while backoff.ask() is not Ask.PROBE:
        clock.now += 0.125
    return clock.now - began


def slow_again(backoff: Backoff) -> None:
    for _ in range(MISSES):
        assert backoff.ask() is Ask.WAIT
        backoff.missed()


def test_a_pool_that_is_fast_now_and_then_meets_growing_pauses() -> None:
    clock = Clock()
    backoff = missed_three_times(clock)
    for pause in (*PAUSES_S, PAUSES_S[-1]):
        assert seconds_until_the_next_probe(backoff, clock) == pause
        for _ in range(RECOVERED - 1):
            backoff.answered()
        slow_again(backoff)


def test_several_answers_in_a_row_make_the_pauses_short_again() -> None:
    clock = Clock()
    backoff = missed_three_times(clock)
    for _ in range(3):
        seconds_until_the_next_probe(backoff, clock)
    for _ in range(RECOVERED):
        backoff.answered()
    slow_again(backoff)
    assert seconds_until_the_next_probe(backoff, clock) == PAUSES_S[0]


def test_a_probe_that_finds_a_context_unread_is_followed_by_another_one_soon() -> None:
    clock = Clock()
    backoff = missed_three_times(clock)
    seconds_until_the_next_probe(backoff, clock)
    for _ in range(5):
        backoff.not_yet()
        assert seconds_until_the_next_probe(backoff, clock) <= 2 * SOON_S
    assert seconds_until_the_next_probe(backoff, clock) == PAUSES_S[1]


def test_an_unread_context_does_not_end_or_bring_back_the_waiting() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    backoff.not_yet()
    assert backoff.ask() is Ask.WAIT
    resting = missed_three_times(clock)
    resting.not_yet()
    clock.now += 1.0
    assert resting.ask() is Ask.PROBE


def test_only_misses_in_a_row_count() -> None:
    backoff = Backoff(Clock())
    for _ in range(5):
        backoff.missed()
        backoff.missed()
        backoff.answered()
    assert backoff.ask() is Ask.WAIT


def test_a_drafter_must_share_vocabulary_and_exits() -> None:
    assert Need("vocabulary", (2, 6)).met_by(member("a"))
    assert not Need("another", (2,)).met_by(member("a"))
    assert not Need("vocabulary", (3,)).met_by(member("a"))


def test_a_failed_worker_shows_in_the_heartbeat(caplog: pytest.LogCaptureFixture) -> None:
    thread = PoolThread(ScriptedWorker(fail=True), time.monotonic)
    thread.start()
    wait(lambda: thread.heartbeat_age_s() == float("inf"))
    assert "unhealthy" in caplog.text


def test_the_first_free_port_of_a_range_is_taken() -> None:
    def add_port(address: str) -> int:
        port = int(address.rpartition(":")[2])
        if port < 7003:
            raise RuntimeError
        return port

    assert bind(add_port, "127.0.0.1", (7001, 7009), "pool.ports") == 7003
    with pytest.raises(ConfigError, match=r"no port of 127.0.0.1:7001-7002 is free; widen pool.ports"):
        bind(add_port, "127.0.0.1", (7001, 7002), "pool.ports")


def test_a_round_goes_to_the_pool_and_back(runner: LoopThread) -> None:
    pool = ScriptedPool(wait_ms=1.5)
    with client(runner, Directory(pool)) as drafts:
        wait(lambda: drafts.replica == "pool-0")
        reply = drafts.draft(request(1, (1, 0, 4), (2, 0, 6)))
        assert reply is not None
        assert [block.tokens for block in reply.blocks] == [(4, 5, 6), (6, 7, 8)]
        assert (reply.round_id, reply.wait_ms) == (1, 1.5)
        drafts.open(request(1, (3, 0, 9), length=0))
        drafts.close([1])
        reply = drafts.draft(request(2, (1, 4, 6), (3, 9, 10)))
        assert reply is not None
        assert [block.status for block in reply.blocks] == [DraftStatus.NEED_CONTEXT, DraftStatus.OK]
    wait(lambda: pool.worker.dropped == ["target-1#1"])
    pool.kill()


def test_a_pool_that_does_not_fit_is_never_asked(runner: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool()
    directory = Directory(pool)

    class Foreign(Directory):
        async def __call__(self) -> Found:
            self.asked += 1
            return Found([PoolMember(pool.address, "x", (3,), "vocabulary", 2048, pool.member.stats)])

    directory = Foreign()
    with client(runner, directory) as drafts:
        wait(lambda: directory.asked > 2)
        assert drafts.replica is None
        assert drafts.draft(request(1, (1, 0, 4))) is None
    assert "none of 1 draft replicas" in caplog.text
    pool.kill()


def test_many_targets_share_one_server(runner: LoopThread) -> None:
    pool = ScriptedPool()
    directory = Directory(pool)
    with client(runner, directory, "a") as first, client(runner, directory, "b") as second:
        wait(lambda: first.replica and second.replica)
        results: list[tuple[str, int]] = []

        def ask(drafts: LinkedDraftClient, target: str, sequence_id: int) -> None:
            for round_id in range(50):
                reply = drafts.draft(request(round_id, (sequence_id, 0, 4), target=target))
                assert reply is not None
                results.append((reply.incarnation, reply.blocks[0].sequence_id))

        threads = [threading.Thread(target=ask, args=each) for each in ((first, "a", 1), (second, "b", 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [("a", 1)] * 50 + [("b", 2)] * 50
        assert len(pool.server._targets) == 2
    pool.kill()
