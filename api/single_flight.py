"""One collection at a time: whoever asks meanwhile gets what the one under way finds.

Where collecting takes longer than the time between two who ask, each would otherwise add a collection to those that run
already, until nothing else gets a turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocol.errors import NotReady, QueueFull

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """age_s: how long before the question a collection may have begun that still answers it. limit_s: of a collection.

    most: who may wait at once.
    """

    age_s: float = 1.0
    limit_s: float = 10.0
    most: int = 64


BOUNDS = Bounds()


class SingleFlight(Generic[T]):
    """Of one event loop. An answer goes to those who wait for it, and is kept for nobody else."""

    def __init__(
        self,
        collect: Callable[[], Awaitable[T]],
        bounds: Bounds = BOUNDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collect, self._bounds, self._clock = collect, bounds, clock
        self._flight: asyncio.Task[T] | None = None
        self._began_s = 0.0
        self._num_waiting = 0

    async def __call__(self) -> T:
        """Raises QueueFull where too many wait, NotReady where collecting takes too long, and what it raises itself.

        Who leaves takes nothing from the others who wait.
        """
        if self._num_waiting >= self._bounds.most:
            raise QueueFull(f"{self._num_waiting} calls wait for the same answer already")
        self._num_waiting += 1
        try:
            return await asyncio.shield(await self._joined(self._clock()))
        finally:
            self._num_waiting -= 1

    async def _joined(self, asked_s: float) -> asyncio.Task[T]:
        """The flight under way, or the next one if that is too old."""
        while self._flight is not None and self._began_s < asked_s - self._bounds.age_s:
            await asyncio.wait([self._flight])
        if self._flight is None:
            # In no caller's context: there Serve notes what to cancel when that caller leaves, and logs whose it is.
            self._flight = asyncio.create_task(self._fly(), context=Context())
            self._flight.add_done_callback(self._landed)
            self._began_s = self._clock()
        return self._flight

    async def _fly(self) -> T:
        try:
            async with asyncio.timeout(self._bounds.limit_s):
                return await self._collect()
        except TimeoutError:
            raise NotReady(f"collecting it took more than {self._bounds.limit_s:g} s") from None

    def _landed(self, flight: asyncio.Task[T]) -> None:
        """Before any of those who wait goes on."""
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # or asyncio complains where all who asked have left


class Lasting(Generic[T]):
    """One collection at a time, whose answer holds for a while: who asks within life_s of it is given it at once."""

    def __init__(
        self,
        collect: Callable[[], Awaitable[T]],
        life_s: float,
        bounds: Bounds = BOUNDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collect, self._life_s, self._clock = collect, life_s, clock
        self._renewed = SingleFlight(self._renew, bounds, clock)
        self._last: tuple[float, T] | None = None  # until when it holds

    async def __call__(self) -> T:
        """Raises as SingleFlight does. An error holds for nobody who asks later."""
        if self._last is not None and self._clock() < self._last[0]:
            return self._last[1]
        return await self._renewed()

    async def _renew(self) -> T:
        answer = await self._collect()
        self._last = self._clock() + self._life_s, answer
        return answer
