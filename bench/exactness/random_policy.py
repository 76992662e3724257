"""A policy that does whatever policies may do, at random: what no text may depend on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from protocol.plan import BatchView, Plan, Speculation
from protocol.record import RoundRecord


class RandomPolicy:
    """Another depth, length and stop for every row, another mode for every round; now and then nothing at all."""

    def __init__(self, exits: tuple[int, ...], length: int, rng: Random) -> None:
        self._exits = exits
        self._length = length
        self._rng = rng

    def opening(self) -> int | None:
        return self._rng.choice((None, *self._exits))

    def plan(self, view: BatchView) -> Plan:
        rng = self._rng
        lengths = tuple(min(rng.randint(0, self._length), each.remaining - 1) for each in view.sequences)
        if rng.random() < 0.2:
            lengths = (0,) * len(lengths)
        own = tuple(rng.choice((None, *self._exits)) for _ in lengths) if rng.random() < 0.3 else ()
        depth = rng.choice(self._exits) if any(lengths) else None
        return Plan(depth, lengths, own, rng.choice((0.0, rng.random())), rng.choice(view.modes))

    def observe(self, record: RoundRecord) -> None:
        return None


def random_wish(rng: Random, exits: Sequence[int], length: int) -> Speculation | None:
    """What a request may ask for itself: mostly nothing, else off or a depth and length."""
    return rng.choice((None, None, Speculation(0, 0), Speculation(rng.choice(exits), rng.randint(1, length))))
