"""A fence around a part that no request depends on: what it raises goes no further, and it rests for some rounds.

The rest is twice as long after each failure. Failures 1, 2, 4, 8, ... are logged with their tracebacks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST, LONGEST = 16, 1024  # rounds

logger = logging.getLogger(__name__)


class Fence:
    """A fence around one part. Single-threaded."""

    def __init__(self, part: str, rounds: Callable[[], int]) -> None:
        """part: its name in the log. rounds: how many there were so far."""
        self.num_failures = 0
        self._part, self._rounds, self._opens_at = part, rounds, 0

    @property
    def open(self) -> bool:
        """Whether the part is to be asked in this round."""
        return self._rounds() >= self._opens_at

    def attempt(self, call: Callable[[], T], otherwise: T, *, always: bool = False) -> T:
        """What the part says; `otherwise` while it rests, and where it fails. always: ask it while it rests, too."""
        if not (self.open or always):
            return otherwise
        try:
            return call()
        except Exception as error:
            self._rest(error)
            return otherwise

    def _rest(self, error: Exception) -> None:
        rest = min(FIRST << min(self.num_failures, 16), LONGEST)
        self.num_failures += 1
        if self.open:
            self._opens_at = self._rounds() + rest
        if self.num_failures.bit_count() == 1:
            logger.error("the %s failed; requests go on without it for %d rounds", self._part, rest, exc_info=error)
