"""The whole API on loopback sockets, HTTP and gRPC over one backend, on an event loop of another thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn

from api.http import create_app
from tests.api.api_twins import CHAT_TEMPLATE, Twin
from tests.api.rpc_server import rpc_server
from tests.deployments.harness import LoopThread

T = TypeVar("T")
CALLING_TEMPLATE = (
    CHAT_TEMPLATE + "{% if tools %}{# <tool_call> tool_calls #}{% endif %}"
)  # short, for a model of few positions


@dataclass(frozen=True, slots=True)
class Servers:
    """loop: where the servers run; clients for asyncio run there too, since gRPC wants one loop per process."""

    http: str
    grpc: str
    loop: LoopThread

    def url(self, transport: str) -> str:
        return self.http if transport == "http" else self.grpc


@contextmanager
def serving(loop: LoopThread, backend: Twin) -> Iterator[Servers]:
    stack = AsyncExitStack()

    async def start() -> tuple[str, str]:
        http = await stack.enter_async_context(_http(backend))
        return http, f"grpc://{await stack.enter_async_context(rpc_server(backend))}"

    try:
        yield Servers(*loop.run(start()), loop)
    finally:
        loop.run(stack.aclose())


@asynccontextmanager
async def _http(backend: Twin) -> AsyncIterator[str]:
    config = uvicorn.Config(create_app(backend), host="127.0.0.1", port=0, log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await running


class Waiting:
    """An AsyncClient that is called like a Client, so that the same tests are of both."""

    def __init__(self, servers: Servers, make: Any, **options: Any) -> None:
        self._loop = servers.loop
        self._client = self._run(_made(make, **options))

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = getattr(self._client, name)(*args, **options)
            return self._run(result) if asyncio.iscoroutine(result) else _WaitingStream(self._loop, result)

        return call

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work, timeout=30)


class _WaitingStream:
    def __init__(self, loop: LoopThread, deltas: Any) -> None:
        self._loop, self._deltas = loop, deltas

    def __iter__(self) -> _WaitingStream:
        return self

    def __next__(self) -> Any:
        try:
            return self._loop.run(_next(self._deltas), timeout=30)
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> _WaitingStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run(self._deltas.close(), timeout=30)


async def _made(make: Any, **options: Any) -> Any:
    return make(**options)


async def _next(deltas: Any) -> Any:
    return await anext(deltas)
