"""What arms have in common and what sets each apart: a level plus an offset per arm, as a Kalman filter (Kalman, 1960).

The level moves most, and arms may be related. So what one arm shows moves the belief about all of them, and the doubt
about an arm that is not played grows. Belief decays towards the prior, which is forgetting. Where recent observations
are off by more than chance, something changed, and everything is as doubtful as at the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SURPRISE = 4.0  # standard deviations of the recent mean that no chance explains
RECENT = 0.9  # weight of a surprise after each later observation
CLIP = 3.0  # standard deviations: what one observation counts at most, for one hiccup is no change
NEWTON = 4  # steps to the mode of a binomial posterior


@dataclass(frozen=True, slots=True)
class Filter:
    """mean, prior: [1 + arms], the level first. cov, spread: covariances of the belief and of the prior.

    surprise, weight: running sums of recent standardized innovations, and of their variances.
    """

    mean: Floats
    cov: Floats
    prior: Floats
    spread: Floats
    surprise: float = 0.0
    weight: float = 0.0
    num_changes: int = 0

    @property
    def arms(self) -> Floats:
        """[arms]: what is believed of each, level included."""
        arms: Floats = self.mean[1:] + self.mean[0]
        return arms

    def arm(self, arm: int) -> float:
        """What is believed of one, level included."""
        return float(self.mean[0] + self.mean[1 + arm])

    def _variance(self, arm: int) -> float:
        at = 1 + arm
        return float(self.cov[0, 0] + 2 * self.cov[0, at] + self.cov[at, at])

    def doubts(self, arm: int | None) -> Floats:
        """[arms]: standard deviation of what sets each arm apart from this one, or of each by itself."""
        own = self.cov.diagonal()
        if arm is None:
            variances = own[0] + 2 * self.cov[0, 1:] + own[1:]
        else:
            variances = own[1:] + own[1 + arm] - 2 * self.cov[1 + arm, 1:]
        doubts: Floats = np.sqrt(np.maximum(variances, 0.0))
        return doubts

    def decayed(self, share: float, of_level: float = 0.0) -> Filter:
        """So much of the belief, in log units, gives way to the prior, and of that about the level so much more."""
        keep = math.exp(-share)
        mean, cov = self.prior + keep * (self.mean - self.prior), self.cov * keep**2
        cov += (1 - keep**2) * self.spread
        if of_level:
            keep = math.exp(-of_level)
            mean[0] = self.prior[0] + keep * (mean[0] - self.prior[0])
            cov[0] *= keep
            cov[:, 0] *= keep
            cov[0, 0] += (1 - keep**2) * self.spread[0, 0]
        return Filter(mean, cov, self.prior, self.spread, self.surprise, self.weight, self.num_changes)

    def settled(self, share: float) -> Filter:
        """So much of the level's prior gives way to what is believed: to what is usual."""
        prior = self.prior.copy()
        prior[0] += share * (self.mean[0] - prior[0])
        return Filter(self.mean, self.cov, prior, self.spread, self.surprise, self.weight, self.num_changes)

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
        odds, rate = before, _sigmoid(before)
        noise = trials * rate * (1 - rate)
        surprise = (successes - trials * rate) / math.sqrt(noise * (1 + noise * doubt))
        for _ in range(NEWTON):
            rate = _sigmoid(odds)
            slope = (before - odds) / doubt + successes - trials * rate
            odds += min(max(slope / (1 / doubt + trials * rate * (1 - rate)), -1.0), 1.0)
        rate = _sigmoid(odds)
        return self._moved(arm, odds - before, 1 / (1 / doubt + trials * rate * (1 - rate)), surprise)

    def _moved(self, arm: int, step: float, variance: float, surprise: float) -> Filter:
        """The belief about an arm moves by a step and has this variance now."""
        shared, doubt = self.cov[0] + self.cov[1 + arm], self._variance(arm)
        mean = self.mean + shared * (step / doubt)
        cov = self.cov - shared[:, None] * (shared * ((doubt - variance) / doubt**2))
        total, weight, changes = RECENT * self.surprise + surprise, RECENT**2 * self.weight + 1, self.num_changes
        if total**2 > SURPRISE**2 * weight:
            cov += self.spread
            total, weight, changes = 0.0, 0.0, changes + 1
        return Filter(mean, cov, self.prior, self.spread, total, weight, changes)


def begin(
    prior: Sequence[float], spread: Sequence[float], related: Sequence[int] = (), relation: float = 0.0
) -> Filter:
    """prior: [1 + arms] guesses, the level first; spread: their standard deviations. related: arms that have something
    more in common, of this standard deviation.
    """
    guess, cov = np.asarray(prior, np.float64), np.diag(np.square(np.asarray(spread, np.float64)))
    at = 1 + np.asarray(related, np.int64)
    cov[np.ix_(at, at)] += relation**2
    return Filter(guess, cov, guess, cov)


def sigmoid(odds: Floats) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-odds))
    return shares


def _sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))
