"""A pool without a model, behind the real server, and an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from unittest.mock import patch

from link.connection import Connection
from link.discovery import Found, Need, PoolMember
from link.links import TransportConfig
from link.pool_server import PoolServer
from link.pool_thread import PoolThread, Reply
from link.secret import Secret
from link.transport import LinkedDraftClient
from protocol.branch import AheadRequest
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.limits import limits_of
from protocol.request import GenerateRequest, SamplingParams, StopRules
from protocol.stats import PassStats, PoolStats

T = TypeVar("T")
EXITS = (2, 4, 6)
HASH = "vocabulary"
DEPTH = 2
SAMPLING = SamplingParams()
TARGET = "target-1"


class LoopThread:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.Thread(target=loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 10.0) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(timeout)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass
class ScriptedWorker:
    """Drafts position numbers. delay_s: how long a pass takes; holds: no pass is done while it is set. Refusals come at
    once. wait_ms: what it reports.
    """

    delay_s: float = 0.0
    holds: bool = False
    wait_ms: float = 0.0
    status: DraftStatus = DraftStatus.OK
    known: dict[tuple[str, int], int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    seen: list[DraftRequest] = field(default_factory=list)
    ahead_seen: list[AheadRequest] = field(default_factory=list)
    fail: bool = False
    _jobs: list[tuple[DraftReply, Reply]] = field(default_factory=list)

    def submit(self, request: DraftRequest, reply: Reply) -> None:
        self.seen.append(request)
        blocks = [self._block(request.incarnation, row) for row in request.rows]
        refused = tuple(block for block in blocks if block.status is not DraftStatus.OK)
        drafted = tuple(block for block in blocks if block.status is DraftStatus.OK)
        if refused:
            reply(DraftReply(request.incarnation, request.round_id, refused))
        if drafted:
            self._jobs.append((DraftReply(request.incarnation, request.round_id, drafted, self.wait_ms), reply))

    def ahead(self, request: AheadRequest, reply: Reply) -> None:
        self.ahead_seen.append(request)

    def close(self, incarnation: str, sequence_ids: Sequence[int]) -> None:
        self.closed.extend(sequence_ids)
        for sequence_id in sequence_ids:
            self.known.pop((incarnation, sequence_id), None)

    def drop(self, incarnation: str) -> None:
        self.dropped.append(incarnation)
        self.known = {key: length for key, length in self.known.items() if key[0] != incarnation}

    def expire(self, now: float) -> None:
        pass

    @property
    def busy(self) -> bool:
        """Whether there is something to do that it does not hold back."""
        return bool(self._jobs) and not self.holds

    def step(self) -> PassStats | None:
        if self.fail:
            raise RuntimeError("scripted failure")
        if not self.busy:
            return None
        time.sleep(self.delay_s)
        for answer, reply in self._jobs:
            reply(answer)
        stats = PassStats(num_rows=len(self._jobs))
        self._jobs.clear()
        return stats

    def stats(self) -> PoolStats:
        return pool_stats(self.wait_ms, num_sequences=len(self.known))

    def _block(self, incarnation: str, row: DraftRow) -> DraftBlock:
        key = (incarnation, row.sequence_id)
        if row.start > self.known.get(key, 0):
            return DraftBlock(row.sequence_id, row.base_length, DraftStatus.NEED_CONTEXT)
        self.known[key] = row.base_length
        tokens = tuple(range(row.base_length, row.base_length + row.length)) if self.status is DraftStatus.OK else ()
        return DraftBlock(row.sequence_id, row.base_length, self.status, tokens, (0.5,) * len(tokens))


class ScriptedPool:
    """One draft replica: worker, thread, server. `kill` is abrupt, as a dead process would be."""

    def __init__(self, name: str = "pool-0", clock: Callable[[], float] = time.monotonic, **script: Any) -> None:
        self.worker = ScriptedWorker(**script)
        self.name = name
        self.thread = PoolThread(self.worker, clock)
        self.thread.start()
        self.secret = Secret.fresh()
        self.server = PoolServer(self.thread, self.secret, limits_of(64, 2048))
        self.address = self.server.start("127.0.0.1", (0, 0))

    @property
    def member(self) -> PoolMember:
        told = member(self.name, self.address, wait_ms=self.worker.wait_ms)
        return replace(told, limits=self.server.limits, secret=self.secret)

    def release(self) -> None:
        """What is held is answered now."""
        self.worker.holds = False
        self.thread._wake_up()

    def kill(self) -> None:
        self.server.stop()
        self.thread.stop()


class Clock:
    """Stands still unless a test moves it, or somebody waits by it in vain."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def moved_by_waiting(clock: Callable[[], float]) -> Iterator[None]:
    """While this lasts, a clock of ours is moved by what links wait for in vain."""
    if not isinstance(clock, Clock):
        yield
        return
    wait, ready = Connection.wait, Connection.ready

    def waited(connection: Connection, timeout_s: float) -> bool:
        came = wait(connection, timeout_s)
        clock.now += 0.0 if came else max(timeout_s, 0.0)
        return came

    def waited_for_any(connections: Sequence[Connection], timeout_s: float) -> list[int]:
        came = ready(connections, timeout_s)
        clock.now += 0.0 if came else max(timeout_s, 0.0)
        return came

    with patch.object(Connection, "wait", waited), patch.object(Connection, "ready", staticmethod(waited_for_any)):
        yield


class Directory:
    """What discovery finds; tests change it. late: those of the pools that are, and do not answer in time."""

    def __init__(self, *pools: ScriptedPool) -> None:
        self.pools = list(pools)
        self.late: Sequence[ScriptedPool] = ()
        self.asked = 0

    async def __call__(self) -> Found:
        self.asked += 1
        return Found([pool.member for pool in self.pools if pool not in self.late], is_complete=not self.late)


@contextmanager
def client(
    runner: LoopThread,
    directory: Directory,
    target: str = TARGET,
    clock: Callable[[], float] = time.monotonic,
    on_link: Callable[[PoolMember], None] | None = None,
    **settings: Any,
) -> Iterator[LinkedDraftClient]:
    defaults = {"deadline_s": 1.0, "discover_every_s": 0.05, "lost_every_s": 0.02}
    config = TransportConfig(**(defaults | settings))

    async def start() -> LinkedDraftClient:
        made = LinkedDraftClient(target, directory, Need(HASH, (2,)), config, clock, on_link)
        await made.start()
        return made

    made = runner.run(start())
    try:
        with moved_by_waiting(clock):
            yield made
    finally:
        runner.run(made.stop())


def wait_until(condition: Any, timeout: float = 120.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def member(name: str, address: str = "127.0.0.1:1", *, wait_ms: float = 0.0) -> PoolMember:
    return PoolMember(address, name, EXITS, HASH, 2048, pool_stats(wait_ms))


def pool_stats(wait_ms: float, num_sequences: int = 0) -> PoolStats:
    return PoolStats(num_sequences, 8, 8, 0, 0, 0, 0, wait_ms)


def request(round_id: int, *rows: tuple[int, int, int], length: int = 3, target: str = TARGET) -> DraftRequest:
    """rows: (sequence id, start, base length)."""
    made = tuple(DraftRow(name, start, tuple(range(start, base)), length, SAMPLING) for name, start, base in rows)
    return DraftRequest(target, round_id, DEPTH, made)


def generate(index: int) -> GenerateRequest:
    return GenerateRequest(str(index), (5, 6, 7, index), SamplingParams(temperature=0.8, seed=index), StopRules(60))
