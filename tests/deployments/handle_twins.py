"""Serve handles that play a script, and a backend in front of them, in this process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from deployments.backend import ServeBackend, nothing
from deployments.cards import Recall
from link.secret import Secret
from link.token_sink import SinkAddress, TokenSink
from link.token_stream import TokenStreams
from protocol.errors import DraftPoolError
from protocol.request import GenerateRequest, TokenRun
from tests.deployments.ingress_twins import Step, play

TOLD = {"max_model_len": 64, "max_batch": 4, "vocab_size": 320, "eos_token_ids": (1,), "exits": (2, 4), "ready": True}
TOLD |= {"longest_draft": 6}


class Response:
    """A unary response."""

    def __init__(self, work: Coroutine[Any, Any, TokenRun | DraftPoolError]) -> None:
        self._task = asyncio.create_task(work)
        self.num_cancelled = 0

    def __await__(self) -> Any:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self.num_cancelled += 1
        self._task.cancel()


class Answers:
    """What a broadcast gives."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = answers

    async def _fetch_replica_results_async(self) -> list[Any]:
        return [SimpleNamespace(get_async=partial(_given, answer)) for answer in self._answers]


async def _given(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, asyncio.Event):
        await answer.wait()
    return answer


class Handle:
    """A Serve handle that answers `describe` with `told`, `generate` with `steps`, broadcasts with the other lists."""

    stats: Sequence[Any] = ()
    router: Sequence[Any] = ()
    trace: Sequence[Any] = ()

    def __init__(self, steps: Sequence[Step] = (), told: Any = TOLD) -> None:
        self.steps, self.told, self.responses = steps, told, list[Response]()
        self.broadcasts: Counter[str] = Counter()  # by method
        self._method = ""

    def options(self, method_name: str, **options: Any) -> Handle:
        made = Handle(self.steps, self.told)
        made._method, made.responses = method_name, self.responses
        return made

    def remote(self, *args: Any) -> Any:
        if self._method == "generate":
            self.responses.append(Response(self._generate(*args)))
            return self.responses[-1]
        return self._describe()

    async def _generate(self, request: GenerateRequest, sink: SinkAddress | None = None) -> TokenRun | DraftPoolError:
        streams = TokenStreams()
        try:
            return await play(streams, request, sink, self.steps)
        finally:
            await streams.stop()

    async def _describe(self) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        if isinstance(self.told, asyncio.Event):
            await self.told.wait()
        return self.told

    def broadcast(self, method_name: str, *args: int) -> Answers:
        self.broadcasts[method_name] += 1
        if isinstance(self.told, Exception):
            raise self.told
        return Answers({"router": self.router, "trace": self.trace}.get(method_name, self.stats))


@asynccontextmanager
async def serving(
    tokenizer_path: str,
    pool: Any = None,
    recall: Recall = nothing,
    clock: Callable[[], float] = time.monotonic,
    **handles: Any,
) -> AsyncIterator[ServeBackend]:
    secret = Secret.fresh()
    sink = TokenSink(secret)
    address = SinkAddress(await sink.start("127.0.0.1", (0, 0)), 20.0, secret)
    yield ServeBackend(handles, dict.fromkeys(handles, tokenizer_path), sink, address, pool, recall=recall, clock=clock)
    await sink.stop()
