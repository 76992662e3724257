"""The time limit of a request: the smaller of the caller's and the operator's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from starlette.datastructures import Headers

from protocol.errors import TimedOut

T = TypeVar("T")
HEADER = "x-request-timeout-seconds"  # Ray Serve's name for it
PASSED_ON = "x-draftpool-timeout-seconds"  # the proxy renames the header to hide it from Serve (deployments/proxy.py)


class TimeLimit:
    """A limit that starts now. max_s: the operator's limit in seconds, or None."""

    def __init__(self, headers: Headers, max_s: float | None) -> None:
        asked_s = _seconds(headers.get(PASSED_ON) or headers.get(HEADER))
        self._seconds = min((limit for limit in (asked_s, max_s) if limit is not None), default=None)
        self._end = None if self._seconds is None else asyncio.get_running_loop().time() + self._seconds

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancels the body when the time is over, and raises TimedOut."""
        try:
            async with asyncio.timeout_at(self._end) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            limit = f"{self._seconds:g} s, its limit"
            raise TimedOut(f"the request took longer than {limit}; ask for fewer tokens, or raise the limit") from None

    async def apply(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items of a generator; raises TimedOut if the next one does not come in time."""
        async with aclosing(items):
            while True:
                try:
                    async with self.enforced():
                        item = await anext(items)
                except StopAsyncIteration:
                    return
                yield item


def _seconds(text: str | None) -> float | None:
    """The header's value in seconds; None, as in Serve, if it is not a positive number."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if seconds > 0 else None
