"""The network between targets and draft replicas: encoded messages, delays, and by seed all that can go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

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
            return replace(message, round_id=rng.randrange(1000), wait_ms=rng.choice([0.0, float("nan"), 1e12]))
        blocks = list(message.blocks)
        index = rng.randrange(len(blocks))
        blocks[index] = _twisted(blocks[index], rng)
        return replace(message, blocks=tuple(blocks))
    if not message.branches:
        return replace(message, round_id=rng.randrange(1000), num_left=rng.randrange(9))
    branches = list(message.branches)
    index = rng.randrange(len(branches))
    branches[index] = _twisted(branches[index], rng)
    if rng.random() < 0.3:
        branches[index] = replace(branches[index], key=rng.getrandbits(64))
    return replace(message, branches=tuple(branches))


def _twisted(draft: Draft, rng: random.Random) -> Draft:
    size = len(draft.tokens)
    match rng.randrange(7):
        case 0:
            return replace(draft, tokens=tuple(rng.randrange(1 << 32) for _ in range(size)))
        case 1:
            return replace(draft, tokens=tuple(rng.randrange(64) for _ in range(size)))
        case 2:
            return replace(draft, confidences=(float("nan"),) * size)
        case 3:
            return replace(draft, tokens=draft.tokens * 2)
        case 4:
            return replace(draft, base_length=max(draft.base_length + rng.randrange(-2, 3), 0))
        case 5:
            return replace(draft, sequence_id=rng.randrange(8))
        case _:
            return replace(draft, exits=(7,) * size)
