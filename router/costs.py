"""What passes cost, as measured: the numbers that every decision about depth and length stands on.

A curve is a table of milliseconds over a full grid, read by multilinear interpolation. Within the grid that is
exact for any cost of the form a + b rows + c tokens + d rows x context + e tokens x context, which is what matrix
products, attention and bookkeeping add up to, and it never leaves the range of the corners around a point: what
rises from corner to corner rises in between. Below the grid the edge counts; beyond it the last slope goes on,
unless it falls.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError

VERIFY_AXES = ("num_rows", "tokens_per_row", "context")
PREFILL_AXES = ("num_tokens",)
ROW_AXES = ("num_rows",)
DRAFT_AXES = ("num_rows", "depth", "num_new", "length")


@dataclass(frozen=True, slots=True)
class Curve:
    """ms: row-major over the grid of `points`, one ascending tuple for each axis. Raises ConfigError otherwise."""

    axes: tuple[str, ...]
    points: tuple[tuple[float, ...], ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.points) or not all(self.points):
            raise ConfigError(f"a curve over {self.axes} needs points for each of them")
        for name, points in zip(self.axes, self.points, strict=True):
            if any(a >= b for a, b in pairwise(points)):
                raise ConfigError(f"the points {points} of {name} must ascend")
        if len(self.ms) != math.prod(self.shape):
            raise ConfigError(f"a grid of {self.shape} takes {math.prod(self.shape)} times, {len(self.ms)} were given")
        if not all(math.isfinite(ms) and ms >= 0 for ms in self.ms):
            raise ConfigError(f"times over {self.axes} must be finite and not negative")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.points))

    def at(self, *point: float) -> float:
        """Milliseconds at one value for each axis."""
        above = [max(x, points[0]) for x, points in zip(point, self.points, strict=True)]
        within = [min(x, points[-1]) for x, points in zip(above, self.points, strict=True)]
        inside = self._blend(within)
        return inside if above == within else max(inside, self._blend(above))

    def _blend(self, point: Sequence[float]) -> float:
        table = np.reshape(np.asarray(self.ms, np.float64), self.shape)
        for points, x in zip(self.points, point, strict=True):
            table = _along(points, table, x)
        return float(table)


def _along(points: Sequence[float], table: npt.NDArray[np.float64], x: float) -> npt.NDArray[np.float64]:
    """Without the table's first axis: the blend of the two entries around x, or of the two nearest beyond them."""
    if len(points) == 1:
        first: npt.NDArray[np.float64] = table[0]
        return first
    low = min(max(bisect_right(points, x) - 1, 0), len(points) - 2)
    weight = (x - points[low]) / (points[low + 1] - points[low])
    blend: npt.NDArray[np.float64] = (1 - weight) * table[low] + weight * table[low + 1]
    return blend


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What times depend on. fingerprint: of the model's shape, for equal shapes cost the same."""

    device: str
    fingerprint: str
    dtype: str
    threads: int
    versions: str


@dataclass(frozen=True, slots=True)
class TargetCosts:
    """verify: forward and picks, context being the mean number of positions that a row holds already.

    prefill: one chunk at the start of a prompt. overhead: the rest of a round, by rows. error: median relative
    error of `verify` at points that were held back.
    """

    key: ModelKey
    verify: Curve
    prefill: Curve
    overhead: Curve
    error: float

    @property
    def max_rows(self) -> float:
        """The largest batch that was measured."""
        return self.verify.points[0][-1]


@dataclass(frozen=True, slots=True)
class DrafterCosts:
    """draft: whole rounds of the pool, num_new being the committed tokens that each row feeds first.

    link: what a round takes that drafts nothing, over a socket on one machine, by rows. error: as for targets.
    """

    key: ModelKey
    draft: Curve
    link: Curve
    error: float

    @property
    def max_rows(self) -> float:
        """The largest batch that was measured."""
        return self.draft.points[0][-1]


@dataclass(frozen=True, slots=True)
class CostCurves:
    """One target with the pool's drafter; drafter None: measured without a pool. All times in milliseconds."""

    name: str
    target: TargetCosts
    drafter: DrafterCosts | None

    def verify_ms(self, num_rows: float, num_tokens: float, context: float) -> float:
        """A pass over num_tokens in all, num_rows of which are the rows' newest tokens and the others drafts."""
        return self.target.verify.at(num_rows, num_tokens / num_rows, context)

    def prefill_ms(self, num_tokens: float) -> float:
        return self.target.prefill.at(num_tokens)

    def overhead_ms(self, num_rows: float) -> float:
        """Bookkeeping of one round: everything that is neither forward, pick nor the pool's work."""
        return self.target.overhead.at(num_rows)

    def draft_ms(self, num_rows: float, depth: float, length: float, num_new: float = 1) -> float:
        """`length` tokens for each row. Without the link."""
        return 0.0 if length <= 0 else self._drafter().draft.at(num_rows, depth, num_new, length)

    def catch_up_ms(self, num_rows: float, depth: float, num_new: float) -> float:
        """The time that it adds to a draft if each row first feeds num_new tokens instead of one."""
        return self.draft_ms(num_rows, depth, 1, num_new) - self.draft_ms(num_rows, depth, 1)

    def link_ms(self, num_rows: float) -> float:
        """There and back."""
        return self._drafter().link.at(num_rows)

    def _drafter(self) -> DrafterCosts:
        if self.drafter is None:
            raise ConfigError(f"target {self.name} was profiled without a drafter; profile a config with a pool")
        return self.drafter


def row_points(last: int) -> tuple[int, ...]:
    """Where to measure between 1 and `last` rows: powers of two, and `last`. Raises ConfigError when it is below 1."""
    if last < 1:
        raise ConfigError("the KV memory has no room for a single row to profile with; raise kv_mb")
    return (*(1 << bit for bit in range((last - 1).bit_length())), last)
