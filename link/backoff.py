"""Whether to ask the pool for a draft, after deadlines were missed.

Three missed deadlines in a row end the waiting. From then on a probe goes out after each of growing pauses: a request
that is sent and not waited for, so a pool which stays slow costs the target nothing. The first probe that is answered
in time brings the waiting back. Should it end again, the pauses go on from the length that they had; RECOVERED answers
in a row make them short again. Otherwise a pool that is fast now and then would be waited for every second.

A probe that is answered NOT_YET at once, for the replica has to read what was written meanwhile, says nothing of how
fast it drafts: the next one follows soon, when that is read. One that is answered so at the pool's deadline says it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

MISSES = 3
RECOVERED = 8
SOON_S = 0.1
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class Ask(Enum):
    WAIT = auto()  # send, and wait up to the deadline
    PROBE = auto()  # send, do not wait
    SKIP = auto()


class Backoff:
    """Whether to wait for one replica. Used by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._misses = 0  # in a row
        self._answers = 0  # in a row
        self._pause = 0
        self._resume_at = 0.0

    @property
    def resting(self) -> bool:
        """Whether the waiting has ended."""
        return self._misses >= MISSES

    def ask(self) -> Ask:
        if not self.resting:
            return Ask.WAIT
        if self._clock() < self._resume_at:
            return Ask.SKIP
        self._pause = min(self._pause + 1, len(PAUSES_S) - 1)
        self._rest()
        return Ask.PROBE

    def missed(self) -> None:
        self._answers = 0
        self._misses += 1
        if self._misses == MISSES:
            self._rest()

    def answered(self) -> None:
        """In time, and with a draft: a pool that refuses at once may still be slow."""
        self._misses = 0
        self._answers += 1
        if self._answers >= RECOVERED:
            self._pause = 0

    def not_yet(self) -> None:
        """The context of a draft has yet to be read."""
        if self.resting:
            self._pause = max(self._pause - 1, 0)  # of this probe
            self._resume_at = self._clock() + SOON_S

    def _rest(self) -> None:
        self._resume_at = self._clock() + PAUSES_S[self._pause]
