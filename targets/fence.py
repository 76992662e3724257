"""A fence around a part that no request depends on: what it raises is logged and goes no further.

    if fence.open:
        with fence:
            ...

A part that failed rests, for FIRST rounds at first and twice as long after each further failure, up to LONGEST. The
first failure is logged with its traceback, those after it are counted; after FORGIVEN good rounds all begins anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

FIRST, LONGEST, FORGIVEN = 16, 1024, 4096  # rounds

logger = logging.getLogger(__name__)


class Fence:
    """Of one part. Single-threaded."""

    def __init__(self, part: str, rounds: Callable[[], int]) -> None:
        """part: its name in the log. rounds: how many there were so far."""
        self.num_failures = 0
        self._part, self._rounds = part, rounds
        self._opens_at = 0
        self._rest = FIRST

    @property
    def open(self) -> bool:
        """Whether the part is to be asked in this round."""
        return self._rounds() >= self._opens_at

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        now = self._rounds()
        if not self.num_failures or now - self._opens_at >= FORGIVEN:
            logger.error("the %s failed; requests go on without it for %d rounds", self._part, FIRST, exc_info=error)
            self._rest = FIRST
        self.num_failures += 1
        if now >= self._opens_at:
            self._opens_at = now + self._rest
            self._rest = min(2 * self._rest, LONGEST)
        return True


class Fences:
    """Those of one loop."""

    def __init__(self, rounds: Callable[[], int]) -> None:
        self._rounds = rounds
        self._all: list[Fence] = []

    def around(self, part: str) -> Fence:
        fence = Fence(part, self._rounds)
        self._all.append(fence)
        return fence

    @property
    def num_failures(self) -> int:
        return sum(fence.num_failures for fence in self._all)
