"""Merges the deltas of several choices, and cancels all work as soon as the client disconnects.

Closing a generator cancels its work in the backend, so every generator is closed explicitly, not by the garbage
collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.generation import Delta

T = TypeVar("T")
Indexed = tuple[int, Delta]  # (index of the choice, delta)
Stream = AsyncGenerator[Delta, None]


class ClientGone(Exception):
    """The client closed the connection before the response began."""


async def merge(streams: Sequence[Stream], max_open: int) -> AsyncGenerator[Indexed, None]:
    """The deltas of all streams as they arrive, of at most `max_open` streams at once. The first error ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    turns = asyncio.Semaphore(max_open)
    arrived: asyncio.Queue[Indexed | asyncio.Task[None]] = asyncio.Queue()

    async def pump(index: int, stream: Stream) -> None:
        async with turns, aclosing(stream):
            async for delta in stream:
                arrived.put_nowait((index, delta))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    for task in pumps:
        task.add_done_callback(arrived.put_nowait)
    try:
        for _ in pumps:
            while not isinstance(item := await arrived.get(), asyncio.Task):
                yield item
            item.result()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def collect(deltas: AsyncGenerator[Indexed, None], num_choices: int) -> list[list[Delta]]:
    """All deltas, by choice."""
    choices: list[list[Delta]] = [[] for _ in range(num_choices)]
    async with aclosing(deltas):
        async for index, delta in deltas:
            choices[index].append(delta)
    return choices


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client disconnects first, cancels the work and raises ClientGone."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """Returns when the client disconnects. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A response of server-sent events. Closes `source` however the response ends, even if it never began."""

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._events):
            await super().__call__(scope, receive, send)
