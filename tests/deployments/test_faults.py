"""What may go wrong between a target and the pool; the engine must never wait beyond its deadline for any of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from deployments.backoff import MISSES, PAUSES_S
from deployments.link import Link
from deployments.local import complete
from protocol.draft import DraftReply, DraftRequest, DraftStatus
from protocol.plan import Plan
from protocol.request import GenerateRequest, SamplingParams, StopRules
from protocol.wire import CloseSequences, TargetMessage
from router.policy import Fixed, Off
from targets.drafting import Drafting
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from targets.sequence import Sequence as Decoding
from tests.deployments.harness import (
    DEPTH,
    TARGET,
    Directory,
    LoopThread,
    ScriptedPool,
    client,
    member,
    request,
    wait_until,
)


def test_without_a_replica_the_answer_is_none_at_once(runner: LoopThread) -> None:
    with client(runner, Directory()) as drafts:
        began = time.monotonic()
        for round_id in range(100):
            drafts.open(request(round_id, (1, 0, 4), length=0))
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
            drafts.close([1])
        assert time.monotonic() - began < 3.0


def test_a_replica_that_refuses_connections_costs_the_engine_nothing(runner: LoopThread) -> None:
    pool = ScriptedPool(runner)
    directory = Directory(pool)
    pool.kill()
    with client(runner, directory) as drafts:
        began = time.monotonic()
        assert drafts.draft(request(1, (1, 0, 4))) is None
        assert time.monotonic() - began < 2.0


def test_a_replica_killed_in_mid_draft_gives_none_long_before_the_deadline(runner: LoopThread) -> None:
    pool = ScriptedPool(runner, delay_s=30.0)
    with client(runner, Directory(pool), deadline_s=20.0) as drafts:
        wait_until(lambda: drafts.replica)
        killer = threading.Timer(0.1, pool.kill)
        killer.start()
        began = time.monotonic()
        assert drafts.draft(request(1, (1, 0, 4))) is None
        assert time.monotonic() - began < 10.0
        killer.join()
        assert drafts.draft(request(2, (1, 0, 4))) is None


def test_after_a_death_the_client_goes_to_the_next_replica_which_asks_for_the_context(runner: LoopThread) -> None:
    first, second = ScriptedPool(runner, "pool-0"), ScriptedPool(runner, "pool-1", wait_ms=50.0)
    directory = Directory(first, second)
    with client(runner, directory) as drafts:
        wait_until(lambda: drafts.replica == "pool-0")
        assert drafts.draft(request(1, (1, 0, 4)))
        first.kill()  # and discovery still lists it, as Serve does for a while
        wait_until(lambda: drafts.replica == "pool-1", timeout=2.0)
        reply = drafts.draft(request(2, (1, 4, 6)))
        assert reply is not None
        assert reply.blocks[0].status is DraftStatus.NEED_CONTEXT
        reply = drafts.draft(request(3, (1, 0, 6)))
        assert reply is not None
        assert reply.blocks[0].tokens == (6, 7, 8)
    second.kill()


def test_a_replica_that_comes_back_is_used_again(runner: LoopThread) -> None:
    directory = Directory(ScriptedPool(runner, "pool-0"))
    with client(runner, directory) as drafts:
        wait_until(lambda: drafts.replica == "pool-0")
        directory.pools.pop().kill()
        wait_until(lambda: drafts.replica is None)
        directory.pools.append(ScriptedPool(runner, "pool-0-restarted"))
        wait_until(lambda: drafts.replica == "pool-0-restarted")
        assert drafts.draft(request(1, (1, 0, 4)))
    directory.pools[0].kill()


def test_a_clearly_less_busy_replica_is_moved_to_and_the_old_one_forgets(runner: LoopThread) -> None:
    first, second = ScriptedPool(runner, "pool-0"), ScriptedPool(runner, "pool-1", wait_ms=20.0)
    with client(runner, Directory(first, second), deadline_s=5.0) as drafts:
        wait_until(lambda: drafts.replica == "pool-0")
        first.worker.wait_ms, second.worker.wait_ms = 40.0, 1.0
        first.thread._stats = first.worker.stats()
        wait_until(lambda: drafts.replica == "pool-1")
        assert drafts.draft(request(1, (1, 0, 4)))
        assert first.worker.seen == []
        wait_until(lambda: first.server.num_streams == 0)
    first.kill()
    second.kill()


def test_a_late_reply_is_dropped_when_it_comes(runner: LoopThread) -> None:
    pool = ScriptedPool(runner, delay_s=1.5)
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
    """Make the pool answer only a part of every request, or with another round's, base's or target's blocks."""
    submit = pool.worker.submit

    def submit_changed(asked: object, reply: object) -> None:
        submit(asked, lambda full: reply(drop(full)))  # type: ignore[arg-type, operator]

    pool.worker.submit = submit_changed  # type: ignore[method-assign, assignment]


def test_at_the_deadline_what_has_come_is_returned(runner: LoopThread) -> None:
    pool = ScriptedPool(runner)
    partial(pool, lambda full: replace(full, blocks=full.blocks[:2]))
    with client(runner, Directory(pool), deadline_s=0.5) as drafts:
        wait_until(lambda: drafts.replica)
        for round_id in range(MISSES + 2):
            reply = drafts.draft(request(round_id, (1, 0, 4), (2, 0, 4), (3, 0, 4)))
            assert reply is not None
            assert [block.sequence_id for block in reply.blocks] == [1, 2]
    pool.kill()


@pytest.mark.parametrize("change", ["round", "incarnation", "base_length", "sequence"])
def test_a_reply_that_belongs_elsewhere_is_never_taken(runner: LoopThread, change: str) -> None:
    def elsewhere(full: DraftReply) -> DraftReply:
        block = full.blocks[0]
        return {
            "round": replace(full, round_id=full.round_id - 1),
            "incarnation": replace(full, incarnation="target-0"),
            "base_length": replace(full, blocks=(replace(block, base_length=block.base_length - 1),)),
            "sequence": replace(full, blocks=(replace(block, sequence_id=99),)),
        }[change]

    pool = ScriptedPool(runner)
    partial(pool, elsewhere)
    with client(runner, Directory(pool), deadline_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        assert drafts.draft(request(5, (1, 0, 4))) is None
    pool.kill()


def test_a_pool_that_is_always_late_is_waited_for_three_times_only(runner: LoopThread) -> None:
    pool = ScriptedPool(runner, delay_s=0.2)
    with client(runner, Directory(pool), deadline_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        began = time.monotonic()
        for round_id in range(2000):
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
        assert time.monotonic() - began < 20  # waiting for each would take 100 s
    pool.kill()


def test_drafting_resumes_when_the_pool_is_fast_again(runner: LoopThread) -> None:
    pool = ScriptedPool(runner, delay_s=0.2)
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
    pool, clock = ScriptedPool(runner, delay_s=1.0), Clock()
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
    pool, clock = ScriptedPool(runner, delay_s=2.0), Clock()
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
    pool = ScriptedPool(runner, delay_s=2.0)
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
    pool = ScriptedPool(runner)
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


def test_a_link_that_can_no_longer_send_ends_and_the_next_one_works(
    runner: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> TargetMessage:
        raise RuntimeError("cannot be sent")

    pool = ScriptedPool(runner)
    with client(runner, Directory(pool), avoid_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        broken = drafts._link
        assert broken is not None
        broken._outbox.get = fail  # type: ignore[method-assign]
        drafts.close([1])
        wait_until(lambda: drafts._link not in (None, broken))
        assert drafts.draft(request(1, (1, 0, 4)))
    assert "writing to draft replica pool-0 failed" in caplog.text
    pool.kill()


def test_a_failing_link_is_left_alone_and_drafting_begins_elsewhere(
    runner: LoopThread, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ScriptedPool(runner, "pool-0"), ScriptedPool(runner, "pool-1", wait_ms=50.0)
    connect = Link.connect

    async def connect_or_fail(link: Link) -> bool:
        if link.member.incarnation == "pool-0":
            raise OSError("no more files")
        return await connect(link)

    monkeypatch.setattr(Link, "connect", connect_or_fail)
    with client(runner, Directory(first, second)) as drafts:
        wait_until(lambda: drafts.replica == "pool-1")
    assert "looking for a draft replica failed" in caplog.text
    first.kill()
    second.kill()


def test_a_link_that_is_given_up_while_it_connects_closes_its_channel(runner: LoopThread) -> None:
    async def give_up() -> grpc.ChannelConnectivity:
        link = Link(member("nobody"), lambda link, reply: None, lambda link: None)
        connecting = asyncio.create_task(link.connect())
        await asyncio.sleep(0.05)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        return link._channel.get_state()

    assert runner.run(give_up()) is grpc.ChannelConnectivity.SHUTDOWN


def test_a_busy_pool_answers_at_once(runner: LoopThread) -> None:
    pool = ScriptedPool(runner, status=DraftStatus.BUSY)
    with client(runner, Directory(pool)) as drafts:
        wait_until(lambda: drafts.replica)
        reply = drafts.draft(request(1, (1, 0, 4)))
        assert reply is not None
        assert [(block.status, block.tokens) for block in reply.blocks] == [(DraftStatus.BUSY, ())]
    pool.kill()


def test_a_target_that_dies_leaves_nothing_at_the_pool(runner: LoopThread) -> None:
    pool = ScriptedPool(runner)
    with client(runner, Directory(pool)) as drafts:
        wait_until(lambda: drafts.replica)
        assert drafts.draft(request(1, (1, 0, 4), (2, 0, 4)))
        assert len(pool.worker.known) == 2
        link = drafts._link
        assert link is not None
        runner.run(link._channel.close())
        wait_until(lambda: not pool.worker.known)
        wait_until(lambda: pool.server.num_streams == 0)
    assert pool.worker.dropped == [TARGET]
    pool.kill()


def test_discovery_that_fails_is_tried_again(runner: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool(runner)

    class Flaky(Directory):
        async def __call__(self) -> list[object]:  # type: ignore[override]
            self.asked += 1
            if self.asked < 3:
                raise ConnectionError("control plane is away")
            return [pool.member]

    with client(runner, Flaky()) as drafts:
        wait_until(lambda: drafts.replica == "pool-0")
    assert "discovery of draft replicas failed" in caplog.text
    pool.kill()


def test_a_close_for_sequences_unknown_to_the_pool_is_harmless(runner: LoopThread) -> None:
    pool = ScriptedPool(runner)
    pool.thread.receive(CloseSequences(TARGET, (7,)), lambda reply: None)
    wait_until(lambda: pool.worker.closed == [7])
    pool.kill()


@pytest.fixture(scope="module")
def target(family: Path) -> TargetModel:
    return load_target(family / "small", dtype=torch.float32, num_positions=2048, page_size=16)


@pytest.mark.parametrize(
    "script",
    [{}, {"delay_s": 0.2}, {"status": DraftStatus.BUSY}, {"status": DraftStatus.TOO_LONG}, {"delay_s": 0.02}],
    ids=["wrong", "late", "busy", "too long", "slow"],
)
def test_no_pool_changes_a_text(runner: LoopThread, target: TargetModel, script: dict[str, Any]) -> None:
    """The scripted pool drafts position numbers, which are nearly always wrong."""
    requests = [generate(index) for index in range(4)]
    plain = finished(Engine(target, Off()), requests)
    pool = ScriptedPool(runner, **script)
    with client(runner, Directory(pool), deadline_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        killer = threading.Timer(0.05, pool.kill)
        if not script:
            killer.start()
        engine = Engine(target, Fixed(DEPTH, 4), drafts, EngineConfig(incarnation=TARGET))
        assert finished(engine, requests) == plain
        assert pool.worker.seen
    assert target.ledger.num_free == target.ledger.num_pages
    killer.cancel()
    pool.kill()


def generate(index: int) -> GenerateRequest:
    return GenerateRequest(str(index), (5, 6, 7, index), SamplingParams(temperature=0.8, seed=index), StopRules(60))


def finished(engine: Engine, requests: Sequence[GenerateRequest]) -> list[tuple[int, ...]]:
    engine.start()
    try:
        return [completion.token_ids for completion in complete(engine, requests)]
    finally:
        engine.stop()
