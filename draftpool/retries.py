"""When a call is made again: only if the server was full or not ready, and only before it has begun to answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from draftpool.errors import RETRIED, Refused
from protocol.errors import TimedOut

Clock = Callable[[], float]  # seconds
Jitter = Callable[[], float]  # in [0, 1)


@dataclass(frozen=True, slots=True)
class Retries:
    """most: calls beyond the first. A pause is what the server asks for (Retry-After), and a random part of first_s
    behind the first call, of twice as much behind the second, and so on, up to longest_s. A server that asks for more
    than longest_s is not called again.
    """

    most: int = 4
    first_s: float = 0.5
    longest_s: float = 30.0


class Attempts:
    """The attempts of one call, which begins now. timeout_s: for all of them, pauses included; None: no limit."""

    def __init__(self, retries: Retries, timeout_s: float | None, clock: Clock, jitter: Jitter) -> None:
        self._retries, self._clock, self._jitter = retries, clock, jitter
        self._timeout_s = timeout_s
        self._end = None if timeout_s is None else clock() + timeout_s
        self._num_failed = 0

    def left_s(self) -> float | None:
        """Seconds for the next attempt. Raises TimedOut if there are none."""
        if self._end is None:
            return None
        left_s = self._end - self._clock()
        if left_s <= 0:
            raise TimedOut(f"the request took longer than {self._timeout_s:g} s, its limit; ask for less, or raise it")
        return left_s

    def pause_s(self, refused: Refused) -> float:
        """Seconds to wait before the next attempt. Raises the error if there is to be none."""
        retries, asked_s = self._retries, refused.retry_after_s or 0.0
        backoff_s = min(retries.first_s * 2.0**self._num_failed, retries.longest_s)
        self._num_failed += 1
        pause_s = asked_s + self._jitter() * backoff_s
        too_late = self._end is not None and self._clock() + pause_s >= self._end
        final = self._num_failed > retries.most or asked_s > retries.longest_s or too_late
        if final or not isinstance(refused.error, RETRIED):
            raise refused.error from None
        return pause_s
