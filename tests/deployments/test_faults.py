"""What may break between a target and the pool: replicas, links, discovery. The engine waits for none of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from deployments.link import Link
from deployments.local import complete
from protocol.draft import DraftStatus
from protocol.request import GenerateRequest
from protocol.wire import CloseSequences, TargetMessage
from router.policy import Fixed, Off
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from tests.deployments.harness import (
    DEPTH,
    TARGET,
    Directory,
    LoopThread,
    ScriptedPool,
    client,
    generate,
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


def finished(engine: Engine, requests: Sequence[GenerateRequest]) -> list[tuple[int, ...]]:
    engine.start()
    try:
        return [completion.token_ids for completion in complete(engine, requests)]
    finally:
        engine.stop()
