"""What a round will take: profiled curves (router/tables.py), corrected by what rounds really took.

A correction is a factor per kind of pass and size of batch, which follows the ratio of measured to profiled time.
Waiting at the pool is followed by itself and fades while nothing is asked of it, so that a target which left a busy
pool comes back to look. A draft that a pool has more to do for than to draft teaches nothing: contexts, probes, layers
that lag.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from protocol.outcome import RoundOutcome
from router.tables import Floats, Tables

FOLLOW = 0.1  # of a new ratio in a correction
STALE, RESTING = 0.98, 0.9  # powers, by digest of rounds in which other rules drafted, or none did
WAIT_FOLLOW = 0.2
WAIT_HALF_LIFE_MS = 2000.0
SETTLED = 16  # tokens; a draft that is handed more is catching up
MEASURED = 6  # rounds of a digest that are held against the profile, the latest: each takes time, too
NEARBY = 16  # tokens of context by which a pass does not differ
KEPT = 256  # lines
EXPOSED = "exposed "  # kinds of overlap
OTHER = {"plain": "wide", "wide": "plain"}
OUTLIER = 4.0  # a ratio beyond this factor of the correction is a hiccup of the machine


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
    _last: tuple[int | None, str] = (None, "")  # rule and overlap of the last draft
    _ratios: dict[tuple[str, int], float] = field(default_factory=dict)
    _lines: dict[tuple[int, int], tuple[Floats, Floats]] = field(default_factory=dict)  # by rows and context

    def verify_line(self, num_rows: int, context: float, wide: bool) -> tuple[Floats, Floats]:
        tokens, ms = self._line(num_rows, context)
        return tokens, ms * self.ratio("wide" if wide else "plain", num_rows)

    def verify_ms(self, num_rows: int, num_tokens: int, context: float) -> float:
        tokens, ms = self.verify_line(num_rows, context, num_tokens > num_rows)
        return float(np.interp(num_tokens, tokens, ms))

    def draft_steps(self, rule: int, num_rows: int) -> Floats:
        """[num_rows + 1, length], as `Tables.steps`."""
        return self.tables.steps[rule][: num_rows + 1] * self._draft_ratio(rule, num_rows)

    def draft_ms(self, rule: int, lengths: Sequence[int]) -> float:
        """Of a ragged round: at each position only the rows whose draft reaches it."""
        return self._profiled_draft(rule, lengths) * self._draft_ratio(rule, len(lengths))

    def other_ms(self, num_rows: int, drafts: bool, exposed: float = 1.0) -> float:
        overhead = self.tables.overhead[num_rows] * self.ratio("rest", num_rows)
        return overhead + (exposed * self._link_ms(num_rows) + self.wait_ms if drafts else 0.0)

    def exposed(self, overlap: str, num_rows: int) -> float:
        """How much of drafting and its link is waited for; all of it in turn, and before anything is known."""
        return self.ratio(f"{EXPOSED}{overlap}", num_rows) if overlap else 1.0

    def round(self, rule: int | None, lengths: Sequence[int], context: float) -> Cost:
        """Any round of this target. rule: None when all lengths are 0."""
        num_rows = len(lengths)
        drafted = 0.0 if rule is None else self.draft_ms(rule, lengths)
        verified = self.verify_ms(num_rows, num_rows + sum(lengths), context)
        return Cost(drafted, verified, self.other_ms(num_rows, rule is not None))

    def ratio(self, kind: str, num_rows: int) -> float:
        """Plain passes and wide ones are the same work: what one kind is not known of is taken from the other."""
        size = num_rows.bit_length()
        other = OTHER.get(kind)
        return self._near(kind, size, self._near(other, size, 1.0) if other else 1.0)

    def is_tried(self, rule: int, num_rows: int) -> bool:
        """Whether what drafting by this rule takes was seen for batches of about this size, and not profiled alone."""
        return self._find(f"draft {rule}", num_rows.bit_length()) is not None

    def is_exposed_known(self, overlap: str, num_rows: int) -> bool:
        return not overlap or self._find(f"{EXPOSED}{overlap}", num_rows.bit_length()) is not None

    def _near(self, kind: str, size: int, otherwise: float) -> float:
        ratio = self._find(kind, size)
        return otherwise if ratio is None else ratio

    def _find(self, kind: str, size: int) -> float | None:
        """Of this size of batch, or of the next larger or smaller one."""
        sizes = (size, size + 1, size - 1)
        return next((self._ratios[kind, near] for near in sizes if (kind, near) in self._ratios), None)

    def observe(self, outcomes: Sequence[tuple[RoundOutcome, int | None]]) -> None:
        """Each with the rule that it drafted by; None: by none or by several, and its draft time teaches nothing."""
        sums: dict[tuple[str, int], _Sum] = {}
        for outcome, _ in outcomes:
            self.elapsed_ms += outcome.draft_ms + outcome.verify_ms + outcome.rest_ms
            self._observe_wait(outcome)
        for outcome, rule in self._settled(outcomes)[-MEASURED:]:
            if outcome.rows and not outcome.num_prefill_tokens:
                for kind, real, profiled in self._compare(outcome, rule):
                    sums.setdefault((kind, len(outcome.rows).bit_length()), _Sum()).add(real, profiled)
        for (kind, size), total in sums.items():
            self._follow(kind, size, total)
        if any(any(outcome.plan.lengths) for outcome, _ in outcomes):
            self._forget({key for key in sums if key[0].startswith("draft ")})
        elif any(outcome.rows for outcome, _ in outcomes):
            self._rest()

    def _settled(self, outcomes: Sequence[tuple[RoundOutcome, int | None]]) -> list[tuple[RoundOutcome, int | None]]:
        """Without the rule where it is another one than before, for layers that lag caught up first, or where rounds
        overlapped in another way, for the pool had more to do.
        """
        settled = []
        for outcome, rule in outcomes:
            drafted = rule, outcome.plan.overlap
            settled.append((outcome, rule if drafted == self._last else None))
            self._last = self._last if rule is None else drafted
        return settled

    def _compare(self, outcome: RoundOutcome, rule: int | None) -> Iterator[tuple[str, float, float]]:
        """Kind, measured and profiled ms of the parts of a round that teach something. Not of one that prompts rode
        along in: the pool runs them as well.
        """
        num_rows = len(outcome.rows)
        num_tokens = num_rows + sum(row.num_verified for row in outcome.rows)
        tokens, ms = self._line(num_rows, outcome.context)
        kind = "wide" if num_tokens > num_rows else "plain"
        yield kind, outcome.verify_ms, float(np.interp(num_tokens, tokens, ms))
        yield "rest", outcome.rest_ms, self.tables.overhead[num_rows]
        lengths = [len(row.exits) for row in outcome.rows]
        if rule is None or not any(lengths) or catches_up(outcome):
            return
        link = self._link_ms(num_rows)
        if outcome.plan.overlap:
            overlap = f"{EXPOSED}{outcome.plan.overlap}"
            yield overlap, outcome.draft_ms - outcome.wait_ms, self.draft_ms(rule, lengths) + link
        elif not outcome.ahead:
            real, profiled = outcome.draft_ms - outcome.wait_ms - link, self._profiled_draft(rule, lengths)
            yield "draft", real, profiled
            yield f"draft {rule}", real, profiled * self.ratio("draft", num_rows)

    def _line(self, num_rows: int, context: float) -> tuple[Floats, Floats]:
        """As `Tables.verify`, which takes long beside a short round; rounds that follow each other ask for the same."""
        key = (num_rows, int(context) // NEARBY)
        if key not in self._lines:
            if len(self._lines) >= KEPT:
                self._lines.clear()
            self._lines[key] = self.tables.verify(num_rows, (key[1] + 0.5) * NEARBY)
        return self._lines[key]

    def _link_ms(self, num_rows: int) -> float:
        return self.tables.link[num_rows] if self.linked else 0.0

    def _draft_ratio(self, rule: int, num_rows: int) -> float:
        """What drafting takes over its profile, and this rule over the others: caches are cold for all of them."""
        return self.ratio("draft", num_rows) * self.ratio(f"draft {rule}", num_rows)

    def _profiled_draft(self, rule: int, lengths: Sequence[int]) -> float:
        steps = self.tables.steps[rule]
        reached = len(lengths) - np.cumsum(np.bincount(lengths))[:-1]  # rows whose draft goes beyond a position
        return float(steps[reached, np.arange(len(reached))].sum())

    def _observe_wait(self, outcome: RoundOutcome) -> None:
        if catches_up(outcome):
            return  # it waited for its own context
        if outcome.draft_ms > 0:
            wait = outcome.wait_ms if outcome.answered else outcome.draft_ms
            self.wait_ms += WAIT_FOLLOW * (wait - self.wait_ms)
        else:
            passed = outcome.verify_ms + outcome.rest_ms
            self.wait_ms *= float(0.5 ** (passed / WAIT_HALF_LIFE_MS))

    def _forget(self, told: Set[tuple[str, int]]) -> None:
        """What set other rules apart when they last drafted fades: a hiccup must not keep them from drafting again."""
        for kind, size in [key for key in self._ratios if key[0].startswith("draft ") and key not in told]:
            if any(size == own for _, own in told):
                self._ratios[kind, size] **= STALE

    def _rest(self) -> None:
        """Nor must it keep this target from drafting at all."""
        for key in [key for key in self._ratios if key[0].startswith("draft")]:
            self._ratios[key] **= RESTING

    def _follow(self, kind: str, size: int, total: _Sum) -> None:
        if total.real <= 0 or total.profiled <= 0:
            return
        if kind.startswith(EXPOSED) and self._find(kind, size) is None:  # there is no profile to start from
            self._ratios[kind, size] = total.real / total.profiled
            return
        before = self._near(kind, size, 1.0)
        ratio = min(max(total.real / total.profiled, before / OUTLIER), before * OUTLIER)
        share = 1 - (1 - FOLLOW) ** total.count
        self._ratios[kind, size] = math.exp((1 - share) * math.log(before) + share * math.log(ratio))


@dataclass(slots=True)
class _Sum:
    """Milliseconds of a few rounds, each no more than OUTLIER times its profile."""

    real: float = 0.0
    profiled: float = 0.0
    count: int = 0

    def add(self, real: float, profiled: float) -> None:
        self.real += min(real, OUTLIER * profiled)
        self.profiled += profiled
        self.count += 1


def catches_up(outcome: RoundOutcome) -> bool:
    """Whether the pool had more to do than to draft: a context that it had not seen, or a probe."""
    return any(row.num_fed > SETTLED or row.probe is not None for row in outcome.rows)
