"""Several deltas at once, and what happens when nobody listens any more: every generator is closed, at once.

Closing is what cancels work in the backend, so nothing here leaves it to the garbage collector.
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
Indexed = tuple[int, Delta]  # (choice, what came)
Stream = AsyncGenerator[Delta, None]


class ClientGone(Exception):
    """The client closed the connection before there was anything to answer."""


async def in_turn(turns: asyncio.Semaphore, stream: Stream) -> Stream:
    """The stream, begun when its turn has come."""
    async with turns, aclosing(stream):
        async for delta in stream:
            yield delta


async def merged(streams: Sequence[Stream]) -> AsyncGenerator[Indexed, None]:
    """Deltas of all streams as they come. The first error ends them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    arrived: asyncio.Queue[Indexed | BaseException | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, stream, arrived)) for index, stream in enumerate(streams)]
    try:
        num_open = len(pumps)
        while num_open:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(index: int, stream: Stream, arrived: asyncio.Queue[Indexed | BaseException | None]) -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                arrived.put_nowait((index, delta))
        arrived.put_nowait(None)
    except Exception as error:
        arrived.put_nowait(error)


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. The first error ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; it is cancelled, and ClientGone raised, when the client leaves first."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the connection is closed. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. `source` is closed however the response ends, even if it never began."""

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._events):
            await super().__call__(scope, receive, send)
