"""How far each mode is off the law, apart from how far all of them are: a Kalman filter (R. E. Kalman, 1960).

The log of what a round took over what the law says is a level, which all modes share, plus an offset of its mode, plus
noise. All of them wander, the level most. So a machine that gets slower tells nothing of a mode, a change of mode that
makes rounds slower does, and what was not played for long is known less and less. A jump may be of the level or of the
mode: the modes that were not played are in doubt then, and worth a trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protocol.plan import Mode

SPREAD = 0.15  # of one round
LEVEL, LEVEL_WANDERS = 0.06, 0.004
AMISS = 0.5  # share of a surprise by which the other offsets are in doubt
SURPRISE = 3.0  # standard deviations
OTHER_SIZE = 0.05  # by how much an offset may be another at another size of batch


@dataclass(frozen=True, slots=True)
class Prior:
    """Of an offset: guess and standard deviation, and by how much it wanders in a round."""

    guess: float
    doubt: float
    wanders: float


# In turn there is nothing but the law; ahead two passes share a machine, early picks and two passes for one cost more.
PRIORS: Mapping[Mode, Prior] = {
    Mode.SERIAL: Prior(0.0, 0.01, 0.0),
    Mode.MIRROR: Prior(0.1, 0.1, 0.002),
    Mode.HINTED: Prior(0.2, 0.12, 0.002),
    Mode.LANES: Prior(0.1, 0.15, 0.002),
}


class Offsets:
    """Of one size of batch. Numbers are logs of ratios of times."""

    def __init__(self, modes: Sequence[Mode], like: Offsets | None = None) -> None:
        """like: those of another size of batch."""
        self._index = {mode: 1 + number for number, mode in enumerate(modes)}
        priors = [like.told(mode) if like else PRIORS[mode] for mode in modes]
        self._guess = np.asarray([0.0, *(prior.guess for prior in priors)])
        self._covariance = np.diag(np.square([LEVEL, *(prior.doubt for prior in priors)]))
        self._wanders = np.diag(np.square([LEVEL_WANDERS, *(prior.wanders for prior in priors)]))

    def told(self, mode: Mode) -> Prior:
        """For another size of batch."""
        prior, at = PRIORS[mode], self._index.get(mode)
        if at is None:
            return prior
        doubt = math.hypot(math.sqrt(self._covariance[at, at]), OTHER_SIZE)
        return Prior(self.of(mode), min(doubt, prior.doubt), prior.wanders)

    def observe(self, mode: Mode, log_ratio: float, num_rounds: int) -> bool:
        """The mean of so many rounds; whether it was a surprise."""
        self._covariance = self._covariance + num_rounds * self._wanders
        at, off = self._index[mode], log_ratio - self.level - self.of(mode)
        surprise = off**2 > SURPRISE**2 * self._variance(at, num_rounds)
        if surprise:
            others = [other for other in self._index.values() if other != at]
            self._covariance[others, others] += (AMISS * off) ** 2
        shared = self._covariance[0] + self._covariance[at]
        variance = self._variance(at, num_rounds)
        self._guess = self._guess + shared * (off / variance)
        self._covariance = self._covariance - np.outer(shared, shared) / variance
        return surprise

    def _variance(self, at: int, num_rounds: int) -> float:
        """Of the mean of so many rounds."""
        return float(self._covariance[[[0], [at]], [0, at]].sum()) + SPREAD**2 / num_rounds

    @property
    def level(self) -> float:
        return float(self._guess[0])

    def of(self, mode: Mode) -> float:
        return float(self._guess[self._index[mode]])

    def doubt(self, one: Mode, other: Mode) -> float:
        """Standard deviation of the difference of two."""
        at, by = self._index[one], self._index[other]
        variances = self._covariance
        return math.sqrt(max(float(variances[at, at] + variances[by, by] - 2 * variances[at, by]), 0.0))
