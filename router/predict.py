"""What a round will take: profiled curves, corrected by what rounds really took.

Curves are read off once into tables, since a plan looks at hundreds of cells. A correction is a factor per kind of
pass and size of batch, which follows the ratio of measured to profiled time; waiting at the pool is followed by itself
and fades while nothing is asked of it, so that a target which left a busy pool comes back to look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protocol.outcome import RoundOutcome
from protocol.plan import DepthRule
from router.costs import CostCurves

Floats = npt.NDArray[np.float64]

FOLLOW = 0.1  # of a new ratio in a correction
WAIT_FOLLOW = 0.2
WAIT_HALF_LIFE_MS = 2000.0
CONTEXT_STEP = 64  # positions: contexts are read off the curves in these steps
OUTLIER = 4.0  # a ratio beyond this factor of the correction is a hiccup of the machine


@dataclass(frozen=True, slots=True)
class Tables:
    """The curves of one target, as arrays. length: of the longest draft; max_rows: of the largest batch."""

    curves: CostCurves
    rules: tuple[DepthRule, ...]
    length: int
    max_rows: int
    steps: tuple[Floats, ...]  # per rule: [max_rows + 1, length] ms of the token at a position, for so many rows
    _lines: dict[tuple[int, int], tuple[Floats, Floats]] = field(default_factory=dict, repr=False)

    def verify(self, num_rows: int, context: float) -> tuple[Floats, Floats]:
        """Numbers of tokens in a pass and its ms, to interpolate between."""
        key = (num_rows, int(context) // CONTEXT_STEP)
        if key not in self._lines:
            self._lines[key] = _verify_line(self.curves, num_rows, self.length, key[1])
        return self._lines[key]


def tables(curves: CostCurves, rules: Sequence[DepthRule], length: int, max_rows: int) -> Tables:
    """Raises ConfigError for curves without a drafter."""
    steps = tuple(_draft_steps(curves, rule, length, max_rows) for rule in rules)
    return Tables(curves, tuple(rules), length, max_rows, steps)


@dataclass(frozen=True, slots=True)
class Cost:
    """Parts of a predicted round, in ms. other: bookkeeping, link and waiting at the pool."""

    draft_ms: float
    verify_ms: float
    other_ms: float

    @property
    def total_ms(self) -> float:
        return self.draft_ms + self.verify_ms + self.other_ms


@dataclass(slots=True)
class Predictor:
    """linked: whether drafts come over a link, whose time then counts."""

    tables: Tables
    linked: bool = False
    wait_ms: float = 0.0  # what a draft of this target waits at the pool
    elapsed_ms: float = 0.0
    _ratios: dict[tuple[str, int], float] = field(default_factory=dict)

    def verify_line(self, num_rows: int, context: float, wide: bool) -> tuple[Floats, Floats]:
        tokens, ms = self.tables.verify(num_rows, context)
        return tokens, ms * self.ratio("wide" if wide else "plain", num_rows)

    def verify_ms(self, num_rows: int, num_tokens: int, context: float) -> float:
        tokens, ms = self.verify_line(num_rows, context, num_tokens > num_rows)
        return float(np.interp(num_tokens, tokens, ms))

    def draft_steps(self, rule: int, num_rows: int) -> Floats:
        """[num_rows + 1, length], as `Tables.steps`."""
        return self.tables.steps[rule][: num_rows + 1] * self.ratio(f"draft {rule}", num_rows)

    def draft_ms(self, rule: int, lengths: Sequence[int]) -> float:
        """Of a ragged round: at each position only the rows whose draft reaches it."""
        steps = self.draft_steps(rule, len(lengths))
        return float(sum(steps[sum(length > j for length in lengths), j] for j in range(max(lengths, default=0))))

    def other_ms(self, num_rows: int, drafts: bool) -> float:
        curves = self.tables.curves
        overhead = curves.overhead_ms(num_rows) * self.ratio("rest", num_rows)
        if not drafts:
            return overhead
        return overhead + (curves.link_ms(num_rows) if self.linked else 0.0) + self.wait_ms

    def round(self, rule: int | None, lengths: Sequence[int], context: float) -> Cost:
        """Any round of this target. rule: None when all lengths are 0."""
        num_rows = len(lengths)
        drafted = 0.0 if rule is None else self.draft_ms(rule, lengths)
        verified = self.verify_ms(num_rows, num_rows + sum(lengths), context)
        return Cost(drafted, verified, self.other_ms(num_rows, rule is not None))

    def ratio(self, kind: str, num_rows: int) -> float:
        size = num_rows.bit_length()
        for near in (size, size + 1, size - 1):
            if (kind, near) in self._ratios:
                return self._ratios[kind, near]
        return 1.0

    def observe(self, outcome: RoundOutcome, rule: int | None) -> None:
        """rule: what the round drafted by; None: nothing, or by several, and then its draft time teaches nothing."""
        num_rows = len(outcome.rows)
        self.elapsed_ms += outcome.draft_ms + outcome.verify_ms + outcome.rest_ms
        self._observe_wait(outcome)
        if not num_rows:
            return
        if not outcome.num_prefill_tokens:
            num_tokens = num_rows + sum(row.num_verified for row in outcome.rows)
            tokens, ms = self.tables.verify(num_rows, outcome.context)
            kind = "wide" if num_tokens > num_rows else "plain"
            self._follow(kind, num_rows, outcome.verify_ms, float(np.interp(num_tokens, tokens, ms)))
        lengths = [len(row.exits) for row in outcome.rows]
        if rule is not None and any(lengths) and not any(row.probe for row in outcome.rows):
            link = self.tables.curves.link_ms(num_rows) if self.linked else 0.0
            real = outcome.draft_ms - outcome.wait_ms - link
            predicted = self.draft_ms(rule, lengths) / self.ratio(f"draft {rule}", num_rows)
            self._follow(f"draft {rule}", num_rows, real, predicted)
        if not outcome.num_prefill_tokens:
            self._follow("rest", num_rows, outcome.rest_ms, self.tables.curves.overhead_ms(num_rows))

    def _observe_wait(self, outcome: RoundOutcome) -> None:
        if outcome.draft_ms > 0:
            wait = outcome.wait_ms if outcome.answered else outcome.draft_ms
            self.wait_ms += WAIT_FOLLOW * (wait - self.wait_ms)
        else:
            passed = outcome.verify_ms + outcome.rest_ms
            self.wait_ms *= float(0.5 ** (passed / WAIT_HALF_LIFE_MS))

    def _follow(self, kind: str, num_rows: int, real: float, profiled: float) -> None:
        if real <= 0 or profiled <= 0:
            return
        key = (kind, num_rows.bit_length())
        before = self.ratio(kind, num_rows)
        ratio = min(max(real / profiled, before / OUTLIER), before * OUTLIER)
        self._ratios[key] = math.exp((1 - FOLLOW) * math.log(before) + FOLLOW * math.log(ratio))


def _verify_line(curves: CostCurves, num_rows: int, length: int, context: int) -> tuple[Floats, Floats]:
    each = sorted({point for point in curves.target.verify.points[1] if point < 1 + length} | {1.0, 1.0 + length})
    middle = (context + 0.5) * CONTEXT_STEP
    ms = [curves.verify_ms(num_rows, num_rows * tokens, middle) for tokens in each]
    return num_rows * np.asarray(each), np.asarray(ms)


def _draft_steps(curves: CostCurves, rule: DepthRule, length: int, max_rows: int) -> Floats:
    depth = sum(rule.exits) / len(rule.exits)
    table = np.zeros((max_rows + 1, length + 1))
    for num_rows in range(1, max_rows + 1):
        table[num_rows, 1:] = [curves.draft_ms(num_rows, depth, number) for number in range(1, length + 1)]
    return np.maximum(np.diff(table, axis=1), 0.0)
