"""Target replicas with real engines in this process that die at a chosen run of tokens, and what Serve does then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import grpc
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from api.spans import NO_SPANS
from api.survival import Recovery
from deployments.backend import ServeBackend
from deployments.target import TargetReplica
from link.secret import Secret
from link.token_sink import SinkAddress, TokenSink
from link.token_stream import TokenStreams
from protocol.errors import DraftPoolError
from protocol.request import GenerateRequest, TokenRun
from targets.engine import Engine
from tests.deployments.handle_twins import TOLD, Response

MODEL = "tiny"


class Death(StrEnum):
    """How a replica ends, as its callers see it."""

    KILLED = "killed"  # calls fail
    CUT = "cut"  # its connections break once, and it lives on
    CANCELLED = "cancelled"  # its server cancels the calls
    FROZEN = "frozen"  # nothing comes any more, and no answer to any question, until Serve kills it
    CLOSED = "closed"  # it is stopped: what it has is handed over, what comes is refused


class Replica:
    """The real `generate` over a real engine and real streams. It ends as the engine gives its `last_run`-th run."""

    def __init__(self, engine: Engine, death: Death, last_run: int | None) -> None:
        self.engine, self.death = engine, death
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.removed = asyncio.Event()
        self._streams, self._num_runs, self._last_run = TokenStreams(), 0, last_run
        self._submit, engine.submit = engine.submit, self._counted  # type: ignore[method-assign]
        engine.start()

    async def generate(self, request: GenerateRequest, sink: SinkAddress | None) -> TokenRun | DraftPoolError:
        watched = {"_spans": NO_SPANS, "_config": SimpleNamespace(name=MODEL)}
        replica: Any = SimpleNamespace(_engine=self.engine, _streams=self._streams, **watched)
        answer, died = asyncio.ensure_future(TargetReplica.generate(replica, request, sink)), self.died
        try:
            await asyncio.wait({answer, died}, return_when=asyncio.FIRST_COMPLETED)
            if self.death is Death.CLOSED or not died.done():
                return await answer
            if self.death is Death.FROZEN:
                await self.removed.wait()
            raise ended(self.death)
        finally:
            answer.cancel()

    async def stop(self) -> None:
        await self._streams.stop()
        await asyncio.to_thread(self.engine.stop)

    def _counted(self, request: GenerateRequest, on_run: Callable[[TokenRun], None]) -> None:
        """A process that is dead says nothing more, not even what it has just computed."""
        loop = asyncio.get_running_loop()

        def told(run: TokenRun) -> None:
            self._num_runs += 1
            if self._last_run is not None and self._num_runs > self._last_run:
                loop.call_soon_threadsafe(self.die)
                if self.death not in (Death.CLOSED, Death.CUT):
                    return
            on_run(run)

        if self._last_run == 0:
            loop.call_soon(self.die)
        self._submit(request, told)

    def die(self) -> None:
        if self.died.done() or self._last_run is None:
            return
        self.died.set_result(None)
        if self.death is Death.CUT:
            self.died, self._last_run = asyncio.get_running_loop().create_future(), None
        if self.death is Death.CLOSED:
            with self.engine._wake:  # as Engine.stop, without waiting for its thread
                self.engine._stopping = True
                self.engine._wake.notify()


def ended(death: Death) -> BaseException:
    if death is Death.KILLED:
        return ActorDiedError()
    if death is Death.CANCELLED:
        return asyncio.CancelledError()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


class Target:
    """A Serve handle: routes to living replicas, waits where there is none, and replaces the dead ones."""

    def __init__(self, make_engine: Callable[[], Engine], dooms: Sequence[int], death: Death, seed: int) -> None:
        """dooms: the last run of each replica that dies; those that replace them live on."""
        self.replicas: list[Replica] = []
        self.dead: list[Replica] = []
        self.asked: list[GenerateRequest] = []
        self.replaces = True
        self._make, self._dooms, self._death = make_engine, list(dooms), death
        self._rng = random.Random(seed)
        self._came = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._method = ""

    def options(self, method_name: str, **options: Any) -> Any:
        return self if method_name == "generate" else SimpleNamespace(remote=self._describe)

    def start(self, num_replicas: int) -> None:
        for _ in range(num_replicas):
            self._add()

    def remote(self, request: GenerateRequest, sink: SinkAddress | None = None) -> Response:
        self.asked.append(request)
        return Response(self._routed(request, sink))

    def broadcast(self, method_name: str) -> Any:
        async def results() -> list[Any]:
            if not self.replicas:
                raise DeploymentUnavailableError.__new__(DeploymentUnavailableError)
            return [SimpleNamespace(get_async=lambda own=replica: self._open_at(own)) for replica in self.replicas]

        return SimpleNamespace(_fetch_replica_results_async=results)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in (*self.replicas, *self.dead):
            await replica.stop()

    async def _describe(self) -> Any:
        return TOLD

    async def _open_at(self, replica: Replica) -> tuple[str, ...]:
        if replica.died.done():
            await asyncio.Event().wait()
        return replica.engine.open_requests

    async def _routed(self, request: GenerateRequest, sink: SinkAddress | None) -> TokenRun | DraftPoolError:
        while not self.replicas:
            self._came.clear()
            await self._came.wait()
        return await self._rng.choice(self.replicas).generate(request, sink)

    def _add(self) -> None:
        replica = Replica(self._make(), self._death, self._dooms.pop(0) if self._dooms else None)
        self.replicas.append(replica)
        self._came.set()
        task = asyncio.create_task(self._watch(replica))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, replica: Replica) -> None:
        """Serve learns of a death a little later than the callers do, or earlier; then it starts another."""
        if replica.death is Death.CUT:
            return
        await asyncio.shield(replica.died)
        if replica.death is Death.FROZEN:
            await asyncio.sleep(2 * SILENCE_S)
        await asyncio.sleep(self._rng.choice([0.0, 0.01, 0.1]))
        self.replicas.remove(replica)
        self.dead.append(replica)
        replica.removed.set()
        await asyncio.sleep(self._rng.choice([0.0, 0.02, 0.2]))
        if self.replaces:
            self._add()


SILENCE_S = 0.6


@asynccontextmanager
async def served(
    target: Target, tokenizer_path: str, num_replicas: int = 2, recovery: Recovery | None = None
) -> AsyncIterator[ServeBackend]:
    """The real backend of an ingress in front of the replicas."""
    secret = Secret.fresh()
    sink = TokenSink(secret)
    address = SinkAddress(await sink.start("127.0.0.1", (0, 0)), 20.0, secret)
    handles: Any = {MODEL: target}
    backend = ServeBackend(handles, {MODEL: tokenizer_path}, sink, address, None, SILENCE_S, recovery)
    target.start(num_replicas)
    try:
        yield backend
    finally:
        await target.stop()
        await sink.stop()
