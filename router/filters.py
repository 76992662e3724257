"""What arms have in common and what sets each apart, as a Kalman filter (Kalman, 1960) of independent causes.

An arm's value is a sum of independent causes: one that all arms share, and its own. So what one arm shows also moves
the belief about arms that share a cause with it, and the most doubtful causes move most. Belief fades towards what is
usual, so the doubt about an arm that is not played grows.

Once a sum of causes was seen they are no longer independent. That is ignored, and keeps a filter at two numbers a
cause. Floats instead of arrays: between passes over a model's weights the processor's caches are cold, so time depends
on how little memory is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Line = tuple[float, ...]
Arms = tuple[tuple[int, ...], ...]

CLIP = 3.0  # standard deviations: what one observation counts at most, for one hiccup is no change


@dataclass(frozen=True, slots=True)
class Filter:
    """means, variances: what is believed of each cause; usual, spread: the same before anything was seen.

    arms: the causes of each.
    """

    arms: Arms
    means: Line
    variances: Line
    usual: Line
    spread: Line

    @property
    def values(self) -> list[float]:
        """What is believed of each arm."""
        means = self.means
        return [sum([means[cause] for cause in arm]) for arm in self.arms]

    def value(self, arm: int) -> float:
        return sum([self.means[cause] for cause in self.arms[arm]])

    def variance(self, arm: int, beside: int | None = None) -> float:
        """Of an arm's value, or of its difference from another arm's."""
        known = () if beside is None else self.arms[beside]
        own, variances = self.arms[arm], self.variances
        apart = [cause for cause in own if cause not in known] + [cause for cause in known if cause not in own]
        return sum([variances[cause] for cause in apart])

    def doubt(self, arm: int, beside: int | None = None) -> float:
        """The standard deviation of the same."""
        return math.sqrt(self.variance(arm, beside))

    def decayed(self, share: float, first: float = 0.0, settled: float = 0.0) -> Filter:
        """Fades towards what is usual: exp(-share) of the distance is left.

        first: added to the share of the first cause. settled: before that, the first cause's usual value moves
        by this share towards its mean.
        """
        usual = (self.usual[0] + settled * (self.means[0] - self.usual[0]), *self.usual[1:])
        shares = [share + first, *[share] * (len(usual) - 1)]
        keeps = [math.exp(-each) for each in shares]
        means = [norm + keep * (mean - norm) for mean, norm, keep in zip(self.means, usual, keeps, strict=True)]
        doubts = [
            spread + keep**2 * (own - spread)
            for own, spread, keep in zip(self.variances, self.spread, keeps, strict=True)
        ]
        return Filter(self.arms, tuple(means), tuple(doubts), usual, self.spread)

    def measured(self, arm: int, value: float, variance: float) -> Filter:
        """The belief after an arm was measured, with this variance."""
        total = self.variance(arm) + variance
        limit = CLIP * math.sqrt(total)
        off = min(max(value - self.value(arm), -limit), limit)
        means, doubts = list(self.means), list(self.variances)
        for cause in self.arms[arm]:
            share = doubts[cause] / total
            means[cause] += share * off
            doubts[cause] *= 1 - share
        return Filter(self.arms, tuple(means), tuple(doubts), self.usual, self.spread)

    def counted(self, arm: int, successes: float, trials: float) -> Filter:
        """The belief, of log odds, after so many successes among trials; linear around its value."""
        odds = self.value(arm)
        rate = sigmoid(odds)
        information = trials * rate * (1 - rate)
        return self.measured(arm, odds + (successes - trials * rate) / information, 1 / information)


def begin(usual: Sequence[float], deviations: Sequence[float], arms: Arms | None = None) -> Filter:
    """usual: what is guessed of each cause; deviations: how far off that may be. arms: None: each cause is one."""
    spread = tuple([deviation**2 for deviation in deviations])
    alone = tuple((cause,) for cause in range(len(spread)))
    return Filter(arms or alone, tuple(usual), spread, tuple(usual), spread)


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))
