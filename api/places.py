"""How much of one model a process of the API answers at once, so that a flood for one leaves room for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import QueueFull


class Places:
    """Of one model and one event loop. most: choices and calls; None: any number."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self.num_taken = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A call, until its choices are under way. Raises QueueFull before anything was done for it."""
        if self._most is not None and self.num_taken >= self._most:
            raise QueueFull(f"{self.num_taken} requests for this model are being answered")
        with self.taken():
            yield

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A choice that is being made."""
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1
