"""The network between targets and draft replicas: encoded messages, delays, and by seed all that can go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from protocol.branch import Branch
from protocol.draft import DraftBlock, DraftReply
from protocol.wire import PoolMessage
from simulation.loop import Loop

Deliver = Callable[[bytes], None]
Draft = TypeVar("Draft", DraftBlock, Branch)


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, each of one message; cut: that its link ends there. late_s: of a spike, up to so long.

    lie: that a pool's message says what no drafter means. deaths: of replicas, in a second of virtual time.
    """

    spike: float = 0.0
    late_s: float = 0.2
    loss: float = 0.0
    reorder: float = 0.0
    twice: float = 0.0
    cut: float = 0.0
    lie: float = 0.0
    deaths: float = 0.0


NONE = Faults()


class Wire:
    """One direction of one link. Messages arrive in the order in which they were sent, unless faults say otherwise."""

    def __init__(self, loop: Loop, delay_s: float, faults: Faults, rng: random.Random, deliver: Deliver) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._faults = faults
        self._rng = rng
        self._deliver = deliver
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


def lie(message: PoolMessage, rng: random.Random) -> PoolMessage:
    """One of the things that no drafter means."""
    if isinstance(message, DraftReply):
        if not message.blocks or rng.random() < 0.2:
            return replace(message, round_id=rng.randrange(99), wait_ms=rng.choice((0.0, float("nan"), 1e12)))
        return replace(message, blocks=_twisted(message.blocks, rng))
    return replace(message, branches=_twisted(message.branches, rng), round_id=rng.randrange(99))


def _twisted(drafts: tuple[Draft, ...], rng: random.Random) -> tuple[Draft, ...]:
    """With one of them changed."""
    index = rng.randrange(max(len(drafts), 1))
    for draft in drafts[index : index + 1]:
        size = len(draft.tokens)
        changes: list[dict[str, Any]] = [
            {"tokens": tuple(rng.randrange(1 << 32) for _ in range(size))},
            {"tokens": tuple(rng.randrange(64) for _ in range(size))},
            {"tokens": draft.tokens * 2},
            {"confidences": (float("nan"),) * size},
            {"exits": (7,) * size},
            {"base_length": draft.base_length + rng.randrange(3)},
            {"sequence_id": rng.randrange(8)},
        ]
        return (*drafts[:index], replace(draft, **rng.choice(changes)), *drafts[index + 1 :])
    return drafts
