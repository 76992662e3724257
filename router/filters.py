"""What arms have in common and what sets each apart, as a Kalman filter (Kalman, 1960) of independent causes.

An arm is a sum of causes, such as what all arms share, and what is its own. So what one arm shows moves the belief about
those that share a cause with it, the doubtful causes most. Belief decays towards the prior, which is forgetting, and so
the doubt about an arm that is not played grows. Where recent observations are off by more than chance, something changed,
and everything is as doubtful as at the beginning.

Causes are held to be independent, which they are not once a sum of them was seen; that keeps a filter to two numbers for
each. Plain floats: between passes over a model's weights the processor's caches are cold, and what counts is how little
is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Line = tuple[float, ...]
Arms = tuple[tuple[int, ...], ...]

SURPRISE = 4.0  # standard deviations of the recent mean that no chance explains
RECENT = 0.9  # weight of a surprise after each later observation
CLIP = 3.0  # standard deviations: what one observation counts at most, for one hiccup is no change
NEWTON = 4  # steps to the mode of a binomial posterior


@dataclass(frozen=True, slots=True)
class Filter:
    """means, variances: what is believed of each cause; prior, spread: the same before anything was seen.

    arms: the causes of each. surprise, weight: running sums of recent standardized innovations, and of their variances.
    """

    arms: Arms
    means: Line
    variances: Line
    prior: Line
    spread: Line
    surprise: float = 0.0
    weight: float = 0.0
    num_changes: int = 0

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

    def decayed(self, share: float, first: float = 0.0) -> Filter:
        """So much of the belief, in log units, gives way to the prior, and of that about the first cause so much more."""
        keep = math.exp(-share)
        kept, given = keep**2, 1 - keep**2
        means = [prior + keep * (mean - prior) for mean, prior in zip(self.means, self.prior, strict=True)]
        doubts = [kept * own + given * usual for own, usual in zip(self.variances, self.spread, strict=True)]
        if first:
            keep = math.exp(-first)
            means[0] = self.prior[0] + keep * (means[0] - self.prior[0])
            doubts[0] = keep**2 * doubts[0] + (1 - keep**2) * self.spread[0]
        return self._with(tuple(means), tuple(doubts))

    def settled(self, share: float) -> Filter:
        """So much of the first cause's prior gives way to what is believed: to what is usual."""
        first, *others = self.prior
        prior = (first + share * (self.means[0] - first), *others)
        return Filter(
            self.arms, self.means, self.variances, prior, self.spread, self.surprise, self.weight, self.num_changes
        )

    def measured(self, arm: int, value: float, variance: float) -> Filter:
        """A value with its variance."""
        total = self.variance(arm) + variance
        limit = CLIP * math.sqrt(total)
        off = min(max(value - self.value(arm), -limit), limit)
        return self._moved(arm, off / total, 1 / total, off / math.sqrt(total))

    def counted(self, arm: int, successes: float, trials: float) -> Filter:
        """Successes among trials, where the belief is about log odds."""
        before, doubt = self.value(arm), self.variance(arm)
        odds, rate = before, sigmoid(before)
        noise = trials * rate * (1 - rate)
        surprise = (successes - trials * rate) / math.sqrt(noise * (1 + noise * doubt))
        for _ in range(NEWTON):
            rate = sigmoid(odds)
            slope = (before - odds) / doubt + successes - trials * rate
            odds += min(max(slope / (1 / doubt + trials * rate * (1 - rate)), -1.0), 1.0)
        rate = sigmoid(odds)
        information = trials * rate * (1 - rate)
        return self._moved(arm, (odds - before) / doubt, information / (1 + information * doubt), surprise)

    def _moved(self, arm: int, step: float, less: float, surprise: float) -> Filter:
        """The causes of an arm move by so much of their variances, and are less doubtful by so much of these squared."""
        means, doubts = list(self.means), list(self.variances)
        for cause in self.arms[arm]:
            means[cause] += step * doubts[cause]
            doubts[cause] -= less * doubts[cause] ** 2
        total, weight, changes = RECENT * self.surprise + surprise, RECENT**2 * self.weight + 1, self.num_changes
        if total**2 > SURPRISE**2 * weight:
            doubts = [own + usual for own, usual in zip(doubts, self.spread, strict=True)]
            total, weight, changes = 0.0, 0.0, changes + 1
        return Filter(self.arms, tuple(means), tuple(doubts), self.prior, self.spread, total, weight, changes)

    def _with(self, means: Line, variances: Line) -> Filter:
        return Filter(
            self.arms, means, variances, self.prior, self.spread, self.surprise, self.weight, self.num_changes
        )


def begin(arms: Arms, prior: Sequence[float], deviations: Sequence[float]) -> Filter:
    """prior: what is guessed of each cause; deviations: how far off that may be."""
    spread = tuple([deviation**2 for deviation in deviations])
    return Filter(arms, tuple(prior), spread, tuple(prior), spread)


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))
