"""What may break between a target and the pool: replicas, links, discovery. The engine waits for none of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from link.connection import Connection
from link.discovery import Found, PoolMember
from link.handshake import MAGIC
from link.link import connect
from link.links import Route
from link.secret import Secret
from link.transport import LinkedDraftClient
from protocol.draft import DraftStatus
from protocol.request import GenerateRequest
from protocol.wire import CloseSequences
from router.policy import Fixed, Off
from targets.complete import complete
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
from tests.link.rig import drafting_on

FOREVER_S = 1e5  # who waits at all does not come back while a test lasts


def route(drafts: LinkedDraftClient) -> Route | None:
    """To the only replica."""
    return next(iter(drafts._links.routes.values()), None)


def test_without_a_replica_the_answer_is_none_at_once(runner: LoopThread) -> None:
    with client(runner, Directory(), deadline_s=FOREVER_S) as drafts:
        for round_id in range(100):
            drafts.open(request(round_id, (1, 0, 4), length=0))
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
            drafts.close([1])


def test_a_replica_that_refuses_connections_costs_the_engine_nothing(runner: LoopThread) -> None:
    pool = ScriptedPool()
    directory = Directory(pool)
    pool.kill()
    with client(runner, directory, deadline_s=FOREVER_S) as drafts:
        wait_until(lambda: drafts._links._avoid)
        assert drafts.draft(request(1, (1, 0, 4))) is None


def test_a_replica_killed_in_mid_draft_gives_none_long_before_the_deadline(runner: LoopThread) -> None:
    pool = ScriptedPool(holds=True)

    def kill() -> None:
        wait_until(lambda: pool.worker.seen)
        pool.kill()

    with drafting_on(runner, pool, deadline_s=FOREVER_S) as drafts:
        killer = threading.Thread(target=kill)
        killer.start()
        assert drafts.draft(request(1, (1, 0, 4))) is None
        killer.join()
        assert drafts.draft(request(2, (1, 0, 4))) is None


def test_a_replica_that_comes_back_is_used_again(runner: LoopThread) -> None:
    directory = Directory(ScriptedPool("pool-0"))
    with client(runner, directory) as drafts:
        wait_until(lambda: drafts.replica == "pool-0")
        directory.pools.pop().kill()
        wait_until(lambda: drafts.replica is None)
        directory.pools.append(ScriptedPool("pool-0-restarted"))
        wait_until(lambda: drafts.replica == "pool-0-restarted")
        assert drafts.draft(request(1, (1, 0, 4)))
    directory.pools[0].kill()


def test_a_link_that_brings_what_is_no_message_ends_and_the_next_one_works(
    runner: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ScriptedPool()
    with drafting_on(runner, pool, avoid_s=0.05) as drafts:
        broken = route(drafts)
        assert drafts.draft(request(1, (1, 0, 4)))
        next(iter(pool.server._targets)).connection.send(b"\xff\xff\xff")
        wait_until(lambda: drafts.draft(request(2, (1, 0, 4))) is None)
        wait_until(lambda: route(drafts) not in (None, broken))
        assert drafts.draft(request(3, (1, 0, 4)))
    assert "draft replica pool-0 is left: what came is no message" in caplog.text


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n", b"draftpool link 0\n"])
def test_what_answers_but_is_no_draft_replica_of_this_version_is_left_alone(
    runner: LoopThread, caplog: pytest.LogCaptureFixture, greeting: bytes
) -> None:
    second = ScriptedPool("pool-1", wait_ms=50.0)
    with foreign_server(greeting) as address:

        class Foreign(Directory):
            async def __call__(self) -> Found:
                return Found([replace(member("pool-0", address), secret=Secret.fresh()), second.member])

        with client(runner, Foreign()) as drafts:
            wait_until(lambda: drafts.replica == "pool-1")
    assert "deploy both sides from one version" in caplog.text
    second.kill()


@contextmanager
def foreign_server(greeting: bytes) -> Iterator[str]:
    """It greets whoever connects, or hangs up on the next one when that is empty."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        sock.sendall(greeting)
                        sock.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_request_that_does_not_fit_into_the_kernels_buffer_gets_there_while_its_answer_is_waited_for(
    runner: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("link.connection.BUFFER", 4096)
    pool = ScriptedPool(delay_s=0.3)
    rows = [(number, 0, 2000) for number in range(500)]  # some 2 MB, in several messages
    with client(runner, Directory(pool), deadline_s=20.0) as drafts, client(runner, Directory(pool), "b") as other:
        wait_until(lambda: drafts.replica and other.replica)
        other._ask(request(1, (1, 0, 4), target="b"))
        reply = drafts.draft(request(1, *rows))
        assert reply is not None
        assert len(reply.blocks) == 500
    pool.kill()


def test_an_idle_target_finds_a_dead_replica_behind_what_it_has_not_read(runner: LoopThread) -> None:
    pool = ScriptedPool(holds=True)
    with drafting_on(runner, pool, deadline_s=0.05) as drafts:
        assert drafts.draft(request(1, (1, 0, 4))) is None
        wait_until(lambda: pool.worker.seen)
        pool.release()
        wait_until(lambda: not pool.worker._jobs)
        pool.kill()
        wait_until(lambda: drafts.replica is None)


def test_a_replica_that_never_proves_itself_is_given_up_in_time_and_its_socket_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("link.link.CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = replace(member("pool-0", f"127.0.0.1:{silent.getsockname()[1]}"), secret=Secret.fresh())
        assert connect(told, TARGET) is None
        with silent.accept()[0] as other:
            assert other.makefile("rb").read().startswith(MAGIC)  # and then its end


def test_a_target_that_stops_while_it_connects_closes_that_link(
    runner: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, opened = ScriptedPool(), []

    def slowly(told: PoolMember, name: str) -> Connection | None:
        connection = connect(told, name)
        opened.append(connection)
        time.sleep(0.2)
        return connection

    monkeypatch.setattr("link.links.connect", slowly)
    with client(runner, Directory(pool)):
        wait_until(lambda: opened)
    assert [connection.fileno() for connection in opened if connection] == [-1]
    pool.kill()


def test_a_target_that_dies_leaves_nothing_at_the_pool(runner: LoopThread) -> None:
    pool = ScriptedPool()
    with drafting_on(runner, pool) as drafts:
        assert drafts.draft(request(1, (1, 0, 4), (2, 0, 4)))
        assert len(pool.worker.known) == 2
        only = route(drafts)
        assert only is not None
        only.link.connection.shut()  # as the system does for a process that has died
        wait_until(lambda: not pool.worker.known)
        wait_until(lambda: not pool.server._targets)
    assert pool.worker.dropped == [f"{TARGET}#1"]


def test_discovery_that_fails_is_tried_again(runner: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool()

    class Flaky(Directory):
        async def __call__(self) -> Found:
            self.asked += 1
            if self.asked < 3:
                raise ConnectionError("control plane is away")
            return Found([pool.member])

    with client(runner, Flaky()) as drafts:
        wait_until(lambda: drafts.replica == "pool-0")
    assert "discovery of draft replicas failed" in caplog.text
    pool.kill()


def test_a_close_for_sequences_unknown_to_the_pool_is_harmless(runner: LoopThread) -> None:
    pool = ScriptedPool()
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
    pool = ScriptedPool(**script)
    with drafting_on(runner, pool, deadline_s=0.05) as drafts:
        killer = threading.Thread(target=lambda: (wait_until(lambda: pool.worker.seen), pool.kill()))
        if not script:
            killer.start()
        engine = Engine(target, Fixed(DEPTH, 4), drafts, EngineConfig(incarnation=TARGET))
        assert finished(engine, requests) == plain
        assert pool.worker.seen
    assert target.ledger.num_free == target.ledger.num_pages
    if script:
        pool.kill()
    else:
        killer.join()


def finished(engine: Engine, requests: Sequence[GenerateRequest]) -> list[tuple[int, ...]]:
    with engine:
        return [completion.token_ids for completion in complete(engine, requests)]
