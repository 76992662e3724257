"""A rate-limited log for events that strangers can cause at will."""

from __future__ import annotations

import logging
from collections.abc import Callable

EVERY_S = 10.0
LONGEST = 300  # characters of a line


class SparingLog:
    """A line every EVERY_S at most; the next one says how many were left out."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float]) -> None:
        """clock: seconds."""
        self._logger, self._clock = logger, clock
        self._told, self._num_quiet = float("-inf"), 0

    def warning(self, line: str) -> None:
        now = self._clock()
        if now - self._told < EVERY_S:
            self._num_quiet += 1
            return
        more = f" ({self._num_quiet} more were left out)" if self._num_quiet else ""
        self._logger.warning("%s%s", line[:LONGEST], more)
        self._told, self._num_quiet = now, 0
