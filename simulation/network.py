"""The network between targets and draft replicas: encoded messages, delays, and by seed all that can go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from protocol.wire import PoolMessage
from simulation.loop import Loop

Deliver = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, each of one message; cut: that its link ends there. late_s: of a spike, up to so long.

    lie: what a pool's message says instead, drawn by chance.
    """

    spike: float = 0.0
    late_s: float = 0.2
    loss: float = 0.0
    reorder: float = 0.0
    twice: float = 0.0
    cut: float = 0.0
    lie: Callable[[PoolMessage, random.Random], PoolMessage] | None = None


NONE = Faults()


class Wire:
    """One direction of one link. Messages arrive in the order in which they were sent, unless faults say otherwise."""

    def __init__(self, loop: Loop, delay_s: float, faults: Faults, rng: random.Random, deliver: Deliver) -> None:
        self._loop, self._delay_s, self._faults = loop, delay_s, faults
        self._rng, self._deliver = rng, deliver
        self._last = 0.0  # arrival

    def send(self, data: bytes, at: float) -> bool:
        """at: the moment of sending, which may lie ahead. False when the link is cut by it."""
        faults = self._faults
        if faults is NONE:
            self._arrive(data, at + self._delay_s)
            return True
        if self._rng.random() < faults.cut:
            return False
        if self._rng.random() < faults.loss:
            return True
        for _ in range(1 + (self._rng.random() < faults.twice)):
            late = self._rng.uniform(0.0, faults.late_s) if self._rng.random() < faults.spike else 0.0
            self._arrive(data, at + self._delay_s + late, waits=self._rng.random() >= faults.reorder)
        return True

    def _arrive(self, data: bytes, at: float, waits: bool = True) -> None:
        if waits:
            at = self._last = max(self._last, at)
        self._loop.call_at(at, lambda: self._deliver(data))
