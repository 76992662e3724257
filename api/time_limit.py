"""How long a request may take, as its caller and the operator have it; what is over ends as any other error does."""

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
PASSED_ON = "x-draftpool-timeout-seconds"  # where a proxy keeps the header from Serve (deployments/proxy.py)


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """end: by the clock of the event loop; None, as seconds: no limit."""

    seconds: float | None
    end: float | None

    @staticmethod
    def of(request: Request, most_s: float | None) -> TimeLimit:
        """From now on; most_s: what the operator lets any request have."""
        asked = _seconds(request.headers.get(PASSED_ON) or request.headers.get(HEADER))
        limits = [limit for limit in (asked, most_s) if limit is not None]
        if not limits:
            return TimeLimit(None, None)
        return TimeLimit(min(limits), asyncio.get_running_loop().time() + min(limits))

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancels what is inside when the time is over, and raises TimedOut."""
        try:
            async with asyncio.timeout_at(self.end) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise TimedOut(
                f"the request took longer than its {self.seconds:g} s; ask for fewer tokens, or give it more time"
            ) from None

    async def each(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items, as long as there is time to wait for them."""
        async with aclosing(items):
            while True:
                try:
                    async with self.kept():
                        item = await anext(items)
                except StopAsyncIteration:
                    return
                yield item


def _seconds(text: str | None) -> float | None:
    """None, as in Serve, for what is not above 0 or no number."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if seconds > 0 else None
