"""Clients of all four kinds: those that wait and those for asyncio, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from typing import Any

import pytest

from draftpool import AsyncClient, Client
from targets.engine import Engine
from tests.api.api_twins import EngineBackend, Twin, card
from tests.client.servers import Servers, Waiting, serving
from tests.deployments.harness import LoopThread

Serve = Callable[[Twin], AbstractContextManager[Servers]]
Connect = Callable[..., Any]  # (servers, **options of the client) -> a client that waits


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """On one loop for all, which outlives the clients."""
    loop = LoopThread(asyncio.new_event_loop())
    yield partial(serving, loop)
    loop.close()


@pytest.fixture(scope="module")
def servers(engine: Engine, serve: Serve) -> Iterator[Servers]:
    """Of the engine that a module of tests has."""
    with serve(EngineBackend(engine, card(max_model_len=engine.max_length))) as servers:
        yield servers


@pytest.fixture(params=["http", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["client", "async client"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(kind: str, transport: str) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield partial(opened, stack, kind, transport)


@pytest.fixture
def connect_both(kind: str) -> Iterator[Connect]:
    """Two clients, over HTTP and over gRPC."""
    with ExitStack() as stack:
        yield lambda servers, **options: [opened(stack, kind, how, servers, **options) for how in ("http", "grpc")]


def opened(stack: ExitStack, kind: str, transport: str, servers: Servers, **options: Any) -> Any:
    if kind == "client":
        return stack.enter_context(Client(servers.url(transport), **options))
    if sleep := options.pop("sleep", None):

        async def asleep(seconds: float) -> None:
            sleep(seconds)

        options["sleep"] = asleep
    waiting = Waiting(servers, AsyncClient, url=servers.url(transport), **options)
    return stack.enter_context(closing(waiting))
