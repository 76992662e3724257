"""What arms have in common and what sets each apart, as a Kalman filter (Kalman, 1960) of independent causes.

An arm is a sum of causes, such as what all arms share, and what is its own. So what one arm shows moves the belief
about those that share a cause with it, the doubtful causes most. Belief decays towards what is usual, which is
forgetting, and so the doubt about an arm that is not played grows.

Causes are held to be independent, which they are not once a sum of them was seen; that keeps a filter to two numbers
for each. Plain floats: between passes over a model's weights the processor's caches are cold, and what counts is how
little is touched.
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
        """Of an arm, or of what sets it apart from another."""
        known = () if beside is None else self.arms[beside]
        own, variances = self.arms[arm], self.variances
        apart = [cause for cause in own if cause not in known] + [cause for cause in known if cause not in own]
        return sum([variances[cause] for cause in apart])

    def doubt(self, arm: int, beside: int | None = None) -> float:
        """The standard deviation of the same."""
        return math.sqrt(self.variance(arm, beside))

    def decayed(self, share: float, first: float = 0.0, settled: float = 0.0) -> Filter:
        """So much of the belief, in log units, gives way to what is usual.

        first: so much more of that about the first cause, of which so much as is `settled` becomes usual before.
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
        """A value with its variance."""
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
        """Successes among trials, where the belief is about log odds: to the first order around what is believed."""
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
