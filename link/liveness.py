"""Detects that the replica of a request has frozen. A frozen process closes no connection and sends no error.

While a request runs, all replicas of its target are asked from time to time which requests they have. The request fails
if a replica does not answer and no other replica has the request. It also fails if all answer and none has it for too
long: there is no replica to take it. All requests of a target share one census.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from link.replies import in_time
from protocol.errors import NotReady


@dataclass(frozen=True, slots=True)
class Census:
    """The open requests of all replicas. request_ids: reported ids. is_complete: whether every replica answered."""

    request_ids: frozenset[str] = frozenset()
    is_complete: bool = True


TakeCensus = Callable[[float], Awaitable[Census]]  # its argument is a timeout in seconds


class Liveness:
    """Watches the replicas of one target."""

    def __init__(
        self,
        take: TakeCensus,
        silence_s: float,
        wait_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """silence_s: seconds after which a request fails: half until the census, half for the answers. wait_s: how many
        seconds a request may be with no replica.
        """
        self._take, self._pause_s, self._wait_s, self._sleep = take, silence_s / 2, wait_s, sleep
        self._running: asyncio.Task[Census | None] | None = None

    @asynccontextmanager
    async def watch(self, request_id: str) -> AsyncIterator[None]:
        """Raises NotReady in the body if the request's replica does not answer, or no replica has it for too long."""
        watch = asyncio.create_task(self._wait_until_lost(request_id))
        try:
            async with asyncio.timeout(None) as limit:
                watch.add_done_callback(lambda ended: None if ended.cancelled() else limit.reschedule(0))
                yield
        except TimeoutError:
            if limit.expired():
                raise NotReady(watch.result()) from None
            raise
        finally:
            watch.cancel()

    async def _wait_until_lost(self, request_id: str) -> str:
        """Returns why it is lost."""
        waited_s = 0.0
        while True:
            await self._sleep(self._pause_s)
            census = await self._census()
            if census is None:
                continue
            if request_id in census.request_ids:
                waited_s = 0.0
                continue
            if not census.is_complete:
                return "the replica that had the request does not answer"
            waited_s += self._pause_s
            if waited_s >= self._wait_s:
                return f"no replica has taken the request within {waited_s:g} s"

    async def _census(self) -> Census | None:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._take_if_possible())
        return await asyncio.shield(self._running)

    async def _take_if_possible(self) -> Census | None:
        try:
            return await self._take(self._pause_s)
        except Exception:  # nothing is known; calls fail by themselves
            return None


async def take_census(answers: Iterable[Awaitable[Any]], timeout_s: float) -> Census:
    """Collects the ids of open requests from each replica. A replica that answers with an error is alive."""
    ids, all_answered = await in_time(answers, timeout_s)
    return Census(frozenset().union(*ids), all_answered)
