"""Ratios of neighbours in time, and the rule by which a bar is met.

Two settings are compared by the ratio of the k-th repetition of one and the k-th of the other, which ran next to each
other; the median of these ratios stands, with a bootstrap interval around it. The best of several settings is chosen
on one half of the repetitions and measured on the other, or noise would be part of what is reported as its speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal, TypeVar

import numpy as np

NUM_RESAMPLES = 2000
CONFIDENCE = 0.90
SLACK = 0.05  # how far the interval may reach beyond a bar
Sense = Literal["at least", "at most"]
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Ratio:
    """low, high: the 90 % bootstrap interval of the median."""

    median: float
    low: float
    high: float
    num_pairs: int

    def interval(self, form: str = ".2f") -> str:
        return f"{self.low:{form}}-{self.high:{form}}"

    def text(self, form: str = ".2f") -> str:
        return f"{self.median:{form}} ({self.interval(form)})"


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of ours over theirs, pair by pair. Raises ValueError unless both hold as many values, and at least one."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    resamples = np.random.default_rng(0).choice(ratios, (NUM_RESAMPLES, len(ratios)))
    medians = np.sort(np.median(resamples, axis=1)).tolist()
    tail = round((1 - CONFIDENCE) / 2 * NUM_RESAMPLES)
    return Ratio(median(ratios), medians[tail], medians[-1 - tail], len(ratios))


def best(rates: Mapping[Key, Sequence[float]]) -> Key:
    """The setting of the highest median rate; the first of equal ones."""
    return max(rates, key=lambda key: median(rates[key]))


def halves(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Repetitions to choose by, and those to measure by: every other one, so that drift falls on both alike."""
    return list(values[::2]), list(values[1::2])


@dataclass(frozen=True, slots=True)
class Bar:
    """asked: what the median must reach, from below ("at least") or from above ("at most"). note: how it was found."""

    name: str
    sense: Sense
    asked: float
    ratio: Ratio
    note: str = ""

    @property
    def met(self) -> bool:
        """The median reaches the bar, and the interval's worse end lies at most 5 % beyond it."""
        if self.sense == "at least":
            return self.ratio.median >= self.asked and self.ratio.low >= (1 - SLACK) * self.asked
        return self.ratio.median <= self.asked and self.ratio.high <= (1 + SLACK) * self.asked

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"met": self.met}
