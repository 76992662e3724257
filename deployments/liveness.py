"""Whether the replica that has a request still lives. A frozen process closes no connection, and says nothing.

While a request is under way all replicas of its target are asked now and then which requests they have. Where one does
not answer, and none of the others has the request, it is given up. Requests of a target share the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from protocol.errors import NotReady


@dataclass(frozen=True, slots=True)
class Census:
    """held: ids of the requests that replicas told of. whole: every replica did."""

    held: frozenset[str] = frozenset()
    whole: bool = True


Take = Callable[[float], Awaitable[Census]]  # within so many seconds


class Liveness:
    """Of one target's replicas."""

    def __init__(self, take: Take, silence_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """silence_s: after which a request is given up: half of it until the question, half for the answer."""
        self._take, self._pause_s, self._sleep = take, silence_s / 2, sleep
        self._asked: asyncio.Task[Census] | None = None

    @asynccontextmanager
    async def of(self, request_id: str) -> AsyncIterator[None]:
        """Raises NotReady inside when the request's replica does not answer."""
        watch = asyncio.create_task(self._lost(request_id))
        try:
            async with asyncio.timeout(None) as limit:
                watch.add_done_callback(lambda ended: None if ended.cancelled() else limit.reschedule(0))
                yield
        except TimeoutError:
            if limit.expired():
                raise NotReady("the replica that had the request does not answer; send the request again") from None
            raise
        finally:
            watch.cancel()

    async def _lost(self, request_id: str) -> None:
        while True:
            await self._sleep(self._pause_s)
            census = await self._census()
            if not census.whole and request_id not in census.held:
                return

    async def _census(self) -> Census:
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._taken())
        return await asyncio.shield(self._asked)

    async def _taken(self) -> Census:
        try:
            return await self._take(self._pause_s)
        except Exception:  # no replica is there: calls learn that by themselves
            return Census()


async def census_of(answers: Iterable[Awaitable[Any]], timeout_s: float) -> Census:
    """answers: of the replicas, the ids that each has. One that fails is there."""
    asked = [asyncio.ensure_future(answer) for answer in answers]
    if not asked:
        return Census()
    told, late = await asyncio.wait(asked, timeout=timeout_s)
    for answer in late:
        answer.cancel()
    held = [answer.result() for answer in told if not answer.cancelled() and answer.exception() is None]
    return Census(frozenset().union(*held), not late)
