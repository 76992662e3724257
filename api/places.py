"""How much of one model a process of the API answers at once, so that a flood for one leaves room for the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from protocol.errors import QueueFull

NUM_KEPT = 32  # times that choices took


def free_in_s(took_s: Sequence[float], num_taken: int) -> float | None:
    """Seconds until one of so many places is given back, by how long the last ones were held; None: not known.

    Little's law. Where the last ones were held for less long than now, it is too short.
    """
    return sum(took_s) / len(took_s) / num_taken if took_s and num_taken else None


class Places:
    """Of one model and one event loop. most: choices and calls; None: any number."""

    def __init__(self, most: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._took_s: deque[float] = deque(maxlen=NUM_KEPT)
        self.num_taken = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A call, until its choices are under way. Raises QueueFull before anything was done for it."""
        if self._most is not None and self.num_taken >= self._most:
            free_s = free_in_s(self._took_s, self.num_taken)
            raise QueueFull(f"{self.num_taken} requests for this model are being answered", free_s)
        with self._held():
            yield

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A choice that is being made."""
        began_s = self._clock()
        try:
            with self._held():
                yield
        finally:
            self._took_s.append(self._clock() - began_s)

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1
