"""Merges the deltas of several choices, and cancels all work as soon as the client disconnects.

Closing a generator cancels its work in the backend, so every generator is closed explicitly, not by the garbage
collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.generation import Delta

T = TypeVar("T")
PING = ": ping\n\n"  # a comment, which clients skip
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


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life while nothing is streamed. every_s: seconds; None: none. sleep: waits so long."""

    every_s: float | None = None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def passes_before(self, task: asyncio.Future[Any]) -> bool:
        """Waits for a task until it is time for a sign; whether the task is not done then."""
        if self.every_s is None:
            await asyncio.wait({task})
            return False
        pause = asyncio.ensure_future(self.sleep(self.every_s))
        try:
            await asyncio.wait({task, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
        return not task.done()

    def kept(self, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The events, and a comment whenever none has come for so long."""
        return events if self.every_s is None else self._kept(events)

    async def _kept(self, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async with aclosing(events):
            while True:
                following = asyncio.ensure_future(anext(events))
                try:
                    while await self.passes_before(following):
                        yield PING
                    event = following.result()
                except StopAsyncIteration:
                    return
                finally:
                    await _ended(following)
                yield event


NO_HEARTBEAT = Heartbeat()


class Begun(Generic[T]):
    """The items of a generator, whose first is asked for at once."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items
        self._first = asyncio.ensure_future(anext(items))
        self._is_first = True

    async def begin(self, heartbeat: Heartbeat) -> None:
        """Waits until the first item has come or a sign of life is due. Raises what the first item raises."""
        if not await heartbeat.passes_before(self._first):
            self._first.result()

    def __aiter__(self) -> Begun[T]:
        return self

    async def __anext__(self) -> T:
        if self._is_first:
            self._is_first = False
            return await self._first
        return await anext(self._items)

    async def aclose(self) -> None:
        await _ended(self._first)
        await self._items.aclose()


async def _ended(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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

    def __init__(self, events: AsyncGenerator[str, None], source: Begun[Any]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._events):
            await super().__call__(scope, receive, send)
