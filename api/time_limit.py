"""The time limit of a request: the smaller of the caller's and the operator's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from protocol.errors import TimedOut

T = TypeVar("T")
HEADER = "x-request-timeout-seconds"  # Ray Serve's name for it
PASSED_ON = "x-draftpool-timeout-seconds"  # the proxy renames the header to hide it from Serve (deployments/proxy.py)


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """seconds: the limit. end: when it is reached, by the event loop's clock. Both None: no limit."""

    seconds: float | None
    end: float | None

    @staticmethod
    def from_request(request: Request, max_s: float | None) -> TimeLimit:
        """A limit that starts now. max_s: the operator's upper limit in seconds, or None."""
        requested = _seconds(request.headers.get(PASSED_ON) or request.headers.get(HEADER))
        limits = [limit for limit in (requested, max_s) if limit is not None]
        if not limits:
            return TimeLimit(None, None)
        return TimeLimit(min(limits), asyncio.get_running_loop().time() + min(limits))

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancels the body when the time is over, and raises TimedOut."""
        try:
            async with asyncio.timeout_at(self.end) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimedOut(
                f"the request took longer than {self.seconds:g} s, its limit; ask for fewer tokens, or raise the limit"
            ) from None

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
