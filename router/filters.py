"""What arms have in common and what sets each apart: a level plus an offset per arm, as a Kalman filter (Kalman, 1960).

The level moves most, and arms may be related. So what one arm shows moves the belief about all of them, and the doubt
about an arm that is not played grows. Belief decays towards the prior, which is forgetting. Where recent observations
are off by more than chance, something changed, and everything is as doubtful as at the beginning.

Plain floats, since there are ten arms at most: between passes over a model's weights the processor's caches are cold,
and then numpy takes ten times as long for so few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

Line = tuple[float, ...]
Square = tuple[Line, ...]

SURPRISE = 4.0  # standard deviations of the recent mean that no chance explains
RECENT = 0.9  # weight of a surprise after each later observation
CLIP = 3.0  # standard deviations: what one observation counts at most, for one hiccup is no change
NEWTON = 4  # steps to the mode of a binomial posterior


@dataclass(frozen=True, slots=True)
class Filter:
    """mean, prior: [1 + arms], the level first. cov, spread: covariances of the belief and of the prior.

    surprise, weight: running sums of recent standardized innovations, and of their variances.
    """

    mean: Line
    cov: Square
    prior: Line
    spread: Square
    surprise: float = 0.0
    weight: float = 0.0
    num_changes: int = 0

    @property
    def arms(self) -> list[float]:
        """What is believed of each, level included."""
        level, *offsets = self.mean
        return [level + offset for offset in offsets]

    def arm(self, arm: int) -> float:
        """What is believed of one, level included."""
        return self.mean[0] + self.mean[1 + arm]

    def _variance(self, arm: int) -> float:
        at, level = 1 + arm, self.cov[0]
        return level[0] + 2 * level[at] + self.cov[at][at]

    def doubts(self, arm: int | None) -> list[float]:
        """Standard deviation of what sets each arm apart from this one, or of each by itself."""
        if arm is None:
            variances = [self._variance(each) for each in range(len(self.mean) - 1)]
        else:
            own = self.cov[1 + arm]
            variances = [
                row[at] + own[1 + arm] - 2 * own[at] for at, row in enumerate(self.cov[1:], start=1)
            ]
        return [math.sqrt(max(variance, 0.0)) for variance in variances]

    def decayed(self, share: float, of_level: float = 0.0) -> Filter:
        """So much of the belief, in log units, gives way to the prior, and of that about the level so much more."""
        keep = math.exp(-share)
        squared, given = keep**2, 1 - keep**2
        mean = [prior + keep * (mean - prior) for mean, prior in zip(self.mean, self.prior, strict=True)]
        cov = [
            [squared * known + given * usual for known, usual in zip(row, spread, strict=True)]
            for row, spread in zip(self.cov, self.spread, strict=True)
        ]
        if of_level:
            keep = math.exp(-of_level)
            mean[0] = self.prior[0] + keep * (mean[0] - self.prior[0])
            cov[0] = [keep * each for each in cov[0]]
            for row in cov:
                row[0] *= keep
            cov[0][0] += (1 - keep**2) * self.spread[0][0]
        return replace(self, mean=tuple(mean), cov=tuple(map(tuple, cov)))

    def settled(self, share: float) -> Filter:
        """So much of the level's prior gives way to what is believed: to what is usual."""
        level, *others = self.prior
        return replace(self, prior=(level + share * (self.mean[0] - level), *others))

    def measured(self, arm: int, value: float, variance: float) -> Filter:
        """A value with its variance."""
        before, doubt = self.arm(arm), self._variance(arm)
        limit = CLIP * math.sqrt(doubt + variance)
        off = min(max(value - before, -limit), limit)
        gain = doubt / (doubt + variance)
        return self._moved(arm, gain * off, doubt * (1 - gain), off / math.sqrt(doubt + variance))

    def counted(self, arm: int, successes: float, trials: float) -> Filter:
        """Successes among trials, where the belief is about log odds."""
        before, doubt = self.arm(arm), self._variance(arm)
        odds, rate = before, sigmoid(before)
        noise = trials * rate * (1 - rate)
        surprise = (successes - trials * rate) / math.sqrt(noise * (1 + noise * doubt))
        for _ in range(NEWTON):
            rate = sigmoid(odds)
            slope = (before - odds) / doubt + successes - trials * rate
            odds += min(max(slope / (1 / doubt + trials * rate * (1 - rate)), -1.0), 1.0)
        rate = sigmoid(odds)
        return self._moved(arm, odds - before, 1 / (1 / doubt + trials * rate * (1 - rate)), surprise)

    def _moved(self, arm: int, step: float, variance: float, surprise: float) -> Filter:
        """The belief about an arm moves by a step and has this variance now."""
        doubt = self._variance(arm)
        shared = [level + own for level, own in zip(self.cov[0], self.cov[1 + arm], strict=True)]
        gain, less = step / doubt, (doubt - variance) / doubt**2
        gone = [less * each for each in shared]
        mean = tuple([known + gain * each for known, each in zip(self.mean, shared, strict=True)])
        cov = tuple([
            tuple([known - own * each for known, each in zip(row, gone, strict=True)])
            for row, own in zip(self.cov, shared, strict=True)
        ])
        total, weight, changes = RECENT * self.surprise + surprise, RECENT**2 * self.weight + 1, self.num_changes
        if total**2 > SURPRISE**2 * weight:
            cov = tuple([
                tuple([known + usual for known, usual in zip(row, spread, strict=True)])
                for row, spread in zip(cov, self.spread, strict=True)
            ])
            total, weight, changes = 0.0, 0.0, changes + 1
        return Filter(mean, cov, self.prior, self.spread, total, weight, changes)


def begin(
    prior: Sequence[float], spread: Sequence[float], related: Collection[int] = (), relation: float = 0.0
) -> Filter:
    """prior: [1 + arms] guesses, the level first; spread: their standard deviations. related: arms that have something
    more in common, of this standard deviation.
    """
    together = {1 + arm for arm in related}
    cov = tuple(
        tuple(
            (own**2 if at == other else 0.0) + (relation**2 if at in together and other in together else 0.0)
            for other in range(len(prior))
        )
        for at, own in enumerate(spread)
    )
    return Filter(tuple(prior), cov, tuple(prior), cov)


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))
