"""Simulated text: what a target says next, and whether a drafter would have said the same.

A state is a 63 bit hash of everything before a position. What the target picks there is a function of (seed, state),
the seed being that of the request's sampling: every sequence has a text of its own, and a text that was fed wrong
tokens goes on differently. A position has one uniform number, and each exit of the drafter a confidence there: the exit
agrees with the target where the number is below it. So of the tokens of confidence c a share c is right, a deeper exit
that is better is right wherever a shallower one is, and two policies that draft at one place meet the same luck.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol.errors import ConfigError

NUM_QUANTILES = 256
_MASK = (1 << 63) - 1
_PICK, _LUCK, _SURE, _WRONG = range(1, 5)


def mix(state: int, value: int) -> int:
    """The state behind one more token; a hash of the two."""
    state = ((state ^ (value + 1) * 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9) & _MASK
    return ((state ^ state >> 31) * 0x94D049BB133111EB & _MASK) ^ state >> 29


def uniform(state: int, stream: int) -> float:
    return mix(state, stream) / (1 << 63)


class Acceptance(Protocol):
    """How a drafter does on one target's texts. exits ascend, in layers."""

    @property
    def exits(self) -> tuple[int, ...]: ...

    def at(self, place: Place, exit_: int) -> tuple[bool, float]:
        """Whether the exit (its number) picks the target's token there, and its confidence."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token is to be picked. number: of the sequence among the target's. now_ms: of the simulation."""

    state: int
    number: int
    position: int
    now_ms: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Acceptance from a position of the texts and a moment on. quantiles: of confidences, by exit, equally likely."""

    quantiles: tuple[tuple[float, ...], ...]
    from_position: int = 0
    from_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """The last of the stages that have begun counts."""

    exits: tuple[int, ...]
    stages: tuple[Rates, ...]

    def at(self, place: Place, exit_: int) -> tuple[bool, float]:
        begun = (one for one in reversed(self.stages) if one.from_position <= place.position)
        stage = next((one for one in begun if one.from_ms <= place.now_ms), self.stages[0])
        values = stage.quantiles[exit_]
        confidence = values[int(uniform(place.state, _SURE) * len(values))]
        return uniform(place.state, _LUCK) < confidence, confidence


def drawn(rates: Mapping[int, float], concentration: float = math.inf) -> Drawn:
    """rates: by exit, in layers."""
    return Drawn(tuple(sorted(rates)), (stage(rates, concentration),))


def stage(rates: Mapping[int, float], concentration: float = math.inf, position: int = 0, ms: float = 0.0) -> Rates:
    """Confidences are Beta-distributed around an exit's rate, as if `concentration` tokens had told of each one's
    chance: small spreads them out; infinity: the rate itself, which tells nothing of a token. Raises ConfigError.
    """
    if not rates or not all(0 <= rate <= 1 for rate in rates.values()) or concentration <= 0:
        raise ConfigError(f"rates {dict(rates)} of concentration {concentration:g} must be shares, above 0 tokens")
    return Rates(tuple(quantiles(rates[exit_], concentration) for exit_ in sorted(rates)), position, ms)


def quantiles(rate: float, concentration: float) -> tuple[float, ...]:
    """Quantiles of a Beta distribution, ascending: a sample, moved to this mean."""
    if not 0 < rate < 1 or math.isinf(concentration):
        return (rate,)
    rng = random.Random(0)
    values = [rng.betavariate(rate * concentration, (1 - rate) * concentration) for _ in range(NUM_QUANTILES)]
    for _ in range(8):
        values = [min(value * rate * len(values) / sum(values), 1.0) for value in values]
    return tuple(sorted(values))


@dataclass(frozen=True, slots=True)
class World:
    """All texts of a simulation. acceptance: by target, in the upper half of a request's seed (see `seed_of`)."""

    vocab_size: int
    acceptance: Sequence[Acceptance]
    seed: int = 0
    now_ms: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    @property
    def root(self) -> int:
        """The state before every text."""
        return mix(0, self.seed)

    def pick(self, state: int, seed: int) -> int:
        """The target's."""
        return mix(mix(state, seed), _PICK) % self.vocab_size

    def drafted(self, state: int, seed: int, position: int, depth: int) -> tuple[int, float]:
        """What the drafter picks in this depth, and its confidence."""
        target, number = owner_of(seed)
        acceptance = self.acceptance[target % len(self.acceptance)]  # a seed may be nobody's
        place = Place(mix(state, seed), number, position, self.now_ms())
        right, confidence = acceptance.at(place, acceptance.exits.index(depth))
        return self.pick(state, seed) if right else self.other(state, seed), confidence

    def other(self, state: int, seed: int) -> int:
        """A token that the target does not pick here."""
        size = self.vocab_size
        return (self.pick(state, seed) + 1 + mix(mix(state, seed), _WRONG) % (size - 1)) % size


def seed_of(target: int, number: int) -> int:
    """The seed of sequence `number` of a target, both counted from 0."""
    return target << 32 | number


def owner_of(seed: int) -> tuple[int, int]:
    return seed >> 32, seed & 0xFFFFFFFF
