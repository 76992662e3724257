"""Simulated text: whether a drafter's token is the target's, decided before anybody drafts it.

Every position of a text has one uniform number. An exit is right there if the number lies below its hazard, so a
deeper exit that is better is right wherever a shallower one is (nestedness), and two policies that draft the same
position meet the same luck. A confidence is drawn around the hazard and takes its place: of the tokens drafted with
confidence c a share c is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from protocol.errors import ConfigError
from protocol.plan import DepthRule

NUM_QUANTILES = 128
GRID = 8192  # points at which a density is summed
TAIL = 30.0  # where it ends: what lies beyond is exp(-TAIL) of it


@dataclass(frozen=True, slots=True)
class AcceptanceTable:
    """cells[e][j]: the confidences, equally likely and ascending, of exit number e at position j of a draft whose
    earlier tokens are right. The hazard is their mean; the last position goes on. exits ascend, in layers.
    """

    exits: tuple[int, ...]
    cells: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        if not self.exits or any(a >= b for a, b in pairwise(self.exits)) or len(self.cells) != len(self.exits):
            raise ConfigError(f"exits {self.exits} must ascend and have one row of hazards each, not {len(self.cells)}")
        for exit_, row in zip(self.exits, self.cells, strict=True):
            if not row or any(not values or not 0 <= values[0] <= values[-1] <= 1 for values in row):
                raise ConfigError(f"the hazards of exit {exit_} must be probabilities, one for a position at least")

    def later(self, position: int) -> AcceptanceTable:
        """Of drafts that go on from this position."""
        if position == 0:
            return self
        return AcceptanceTable(self.exits, tuple(row[position:] or row[-1:] for row in self.cells))

    def hazard(self, exit_: int, position: int) -> float:
        values = self._row(exit_, position)
        return sum(values) / len(values)

    def survivals(self, exit_: int, length: int) -> list[float]:
        """Probability that so many leading tokens are right: of 1, 2, ... `length` tokens."""
        hazards = [self.hazard(exit_, position) for position in range(length)]
        return [math.prod(hazards[: position + 1]) for position in range(length)]

    def ladder(self, rule: DepthRule) -> tuple[int, ...]:
        """The exits' numbers. Raises ConfigError for an exit that the table does not know."""
        if unknown := set(rule.exits) - set(self.exits):
            raise ConfigError(f"exit {min(unknown)} is not in the acceptance table, whose exits are {self.exits}")
        return tuple(self.exits.index(exit_) for exit_ in rule.exits)

    def _row(self, exit_: int, position: int) -> tuple[float, ...]:
        row = self.cells[self.exits.index(exit_)]
        return row[min(position, len(row) - 1)]


def acceptance_table(hazards: Mapping[int, Sequence[float]], concentration: float = math.inf) -> AcceptanceTable:
    """hazards: by exit, then position. Confidences are Beta-distributed, as if `concentration` tokens had told of each
    one's chance: small spreads them out, infinity is the hazard itself.
    """
    if concentration <= 0:
        raise ConfigError(f"a concentration of {concentration:g} is no number of tokens; give more than 0")
    exits = tuple(sorted(hazards))
    cells = tuple(tuple(confidences(hazard, concentration) for hazard in hazards[exit_]) for exit_ in exits)
    return AcceptanceTable(exits, cells)


def confidences(hazard: float, concentration: float) -> tuple[float, ...]:
    """Quantiles of a Beta distribution with this mean, ascending."""
    if not 0 < hazard < 1 or math.isinf(concentration):
        return (float(hazard),)
    first, second = hazard * concentration, (1 - hazard) * concentration
    middle, width = math.log(first / second), 8 * math.sqrt(1 / first + 1 / second)
    odds = np.linspace(middle - width - TAIL / first, middle + width + TAIL / second, GRID)  # of the confidence, logged
    x = np.exp(-np.logaddexp(0.0, -odds))
    log_density = -first * np.logaddexp(0.0, -odds) - second * np.logaddexp(0.0, odds)
    mass = np.cumsum(np.exp(log_density - log_density.max()))
    middles = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    values = np.interp(middles, mass / mass[-1], x)
    for _ in range(4):  # the grid's own error, so that the mean is the hazard
        values = np.clip(values * (hazard / values.mean()), 0.0, 1.0)
    return tuple(values.tolist())


@dataclass(frozen=True, slots=True)
class Stage:
    """A table, and from when on it counts: from a text's own token, or a time of the simulation, or both."""

    table: AcceptanceTable
    from_token: int = 0
    from_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """How a target's texts are accepted; the last stage that has begun counts. All stages have the same exits."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0].from_token > 0 or self.stages[0].from_ms > 0:
            raise ConfigError("an acceptance profile needs a first stage that begins at token 0 and 0 ms")
        if len({stage.table.exits for stage in self.stages}) > 1:
            raise ConfigError("the stages of an acceptance profile must name the same exits")

    @property
    def exits(self) -> tuple[int, ...]:
        return self.stages[0].table.exits

    def at(self, token: int, ms: float) -> AcceptanceTable:
        stages = self.stages
        if len(stages) == 1:
            return stages[0].table
        return next(s.table for s in reversed(stages) if token >= s.from_token and ms >= s.from_ms)


def always(table: AcceptanceTable) -> Profile:
    return Profile((Stage(table),))


class Draft:
    """What the pool will say. exits: numbers, one a token; right: whether a token is the target's, the earlier ones
    given; run: leading tokens that are right.
    """

    __slots__ = ("confidences", "exits", "run")

    def __init__(self, exits: list[int], confidences: list[float], run: int) -> None:
        self.exits = exits
        self.confidences = confidences
        self.run = run

    def first(self, length: int) -> Draft:
        return Draft(self.exits[:length], self.confidences[:length], min(self.run, length))


NOTHING = Draft([], [], 0)


class Fate(Protocol):
    """One sequence's: what drafters would pick, and how sure they would be."""

    def draft(self, table: AcceptanceTable, rule: DepthRule, start: int, length: int, floor: float) -> Draft:
        """Of the tokens at positions start, start + 1, ... of the output; ends early where its product of confidences
        is no longer above the floor.
        """

    def probe(self, profile: Profile, start: int, stop: int, ms: float) -> tuple[list[list[bool]], list[list[float]]]:
        """At output positions [start, stop), by exit: matches and confidences."""


class Text:
    """A fate by luck: of each position the uniform that decides, and one that draws the confidence."""

    __slots__ = ("_luck", "_mood")

    def __init__(self, num_tokens: int, rng: np.random.Generator) -> None:
        self._luck: list[float] = rng.random(num_tokens).tolist()
        self._mood: list[float] = rng.random(num_tokens).tolist()

    def draft(self, table: AcceptanceTable, rule: DepthRule, start: int, length: int, floor: float) -> Draft:
        ladder, thresholds = table.ladder(rule), rule.thresholds
        exits, sure = [], []
        run, product = 0, 1.0
        for position in range(length):
            for rung, exit_ in enumerate(ladder):
                row = table.cells[exit_]
                values = row[position] if position < len(row) else row[-1]
                confidence = values[int(self._mood[start + position] * len(values))]
                if rung == len(thresholds) or confidence > thresholds[rung]:
                    break
            exits.append(exit_)
            sure.append(confidence)
            if run == position and self._luck[start + position] < confidence:
                run += 1
            product *= confidence
            if product <= floor and floor > 0:
                break
        return Draft(exits, sure, run)

    def probe(self, profile: Profile, start: int, stop: int, ms: float) -> tuple[list[list[bool]], list[list[float]]]:
        """Each exit's position in a draft counts from its last miss, as if it had drafted all along."""
        matches: list[list[bool]] = [[] for _ in profile.exits]
        sure: list[list[float]] = [[] for _ in profile.exits]
        runs = [0] * len(profile.exits)
        for at in range(start, stop):
            cells = profile.at(at, ms).cells
            for exit_, row in enumerate(cells):
                values = row[min(runs[exit_], len(row) - 1)]
                confidence = values[int(self._mood[at] * len(values))]
                right = self._luck[at] < confidence
                runs[exit_] = runs[exit_] + 1 if right else 0
                matches[exit_].append(right)
                sure[exit_].append(confidence)
        return matches, sure
