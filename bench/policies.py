"""Policies by name, and what their rounds came to: the one place where bench touches the router's and the step's own
types.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from protocol.plan import BatchView, Plan
from protocol.record import RoundRecord
from protocol.stats import RoundStats
from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    ModelKey,
    TargetCosts,
)
from router.policy import Ema, Goodput, Policy
from router.tables import tables

OFF, FIXED, EMA, GOODPUT, NOSTOP = "off", "fixed", "ema", "goodput", "nostop"
POLICIES = (OFF, FIXED, EMA, GOODPUT)
ADAPTIVE = (EMA, GOODPUT, NOSTOP)  # those that choose depth and length from costs and acceptance


class NoStop(Goodput):
    """Goodput whose drafts end at their length only."""

    def plan(self, view: BatchView) -> Plan:
        return replace(super().plan(view), stop_probability=0.0)


def adaptive(name: str, curves: CostCurves, exits: tuple[int, ...], max_rows: int, length: int = 12) -> Policy:
    """One that chooses among the exits, with drafts of up to `length` tokens."""
    costs = tables(curves, exits, length, max_rows)
    made: dict[str, type[Ema] | type[Goodput]] = {EMA: Ema, GOODPUT: Goodput, NOSTOP: NoStop}
    return made[name](costs)


@dataclass(frozen=True, slots=True)
class Times:
    """Medians over decoding rounds, in ms: the wait for drafts, the target's pass, and everything else."""

    draft_ms: float
    verify_ms: float
    rest_ms: float


@dataclass(slots=True)
class RoundRecorder:
    """Any policy, with a record of each of its rounds."""

    policy: Policy
    rounds: list[RoundRecord] = field(default_factory=list)

    def opening(self) -> int | None:
        return self.policy.opening()

    def plan(self, view: BatchView) -> Plan:
        return self.policy.plan(view)

    def observe(self, record: RoundRecord) -> None:
        self.rounds.append(record)
        self.policy.observe(record)


def plays(rounds: Collection[RoundRecord]) -> dict[str, float]:
    """Share of the decoding rounds that were planned as "depth/longest draft" or "off", most frequent first."""
    names = Counter(_name(one.plan) for one in rounds if one.rows)
    return {name: round(count / names.total(), 4) for name, count in names.most_common()}


def often(played: Mapping[str, float]) -> str:
    """The three most frequent of `plays`, in words."""
    return ", ".join(f"{name} {share:.0%}" for name, share in list(played.items())[:3])


def _name(plan: Plan) -> str:
    if plan.depth is None or not any(plan.lengths):
        return OFF
    return f"{plan.depth}/{max(plan.lengths)}"


def times(rounds: Collection[RoundRecord]) -> Times:
    """Of rounds without a prompt in their pass. Raises ValueError when there is none."""
    steady = [one for one in rounds if one.rows and not one.num_prefill_tokens]
    if not steady:
        raise ValueError("no round without a prompt in its pass; ask for more tokens")
    return Times(*(median(getattr(one, name) for one in steady) for name in ("draft_ms", "verify_ms", "rest_ms")))


def draft_ms_per_token(rounds: Collection[RoundRecord]) -> float | None:
    """Of rounds in which the pool ran no more committed tokens than a round commits; None when nothing was drafted."""
    settled = [one for one in rounds if all(row.num_fed <= max(one.plan.lengths) + 1 for row in one.rows)]
    drafted = num_drafted(settled)
    return sum(one.draft_ms for one in settled) / drafted if drafted else None


def num_drafted(rounds: Collection[RoundRecord]) -> int:
    return sum(row.num_drafted for one in rounds for row in one.rows)


@dataclass(frozen=True, slots=True)
class Hits:
    """share: of the outcomes, those that had a proposal at hand. wait_ms: mean wait for proposals of rounds that had
    all of them at hand; None when there was no such round.
    """

    share: float
    wait_ms: float | None


def hits(stats: RoundStats) -> Hits:
    share = stats.num_hits / max(stats.num_hits + stats.num_misses, 1)
    wait_ms = stats.hit_draft_ms / stats.num_hit_rounds if stats.num_hit_rounds else None
    return Hits(round(share, 4), wait_ms)


def latency_bound(waited: Times, hit_rate: float) -> float:
    """The speed-up that drafting ahead can reach over drafting in turn with as many tokens (Mirror-SD, section 3.4)."""
    in_turn = waited.draft_ms + waited.verify_ms + waited.rest_ms
    ahead = max(waited.verify_ms, waited.draft_ms) + (1 - hit_rate) * waited.draft_ms + waited.rest_ms
    return in_turn / ahead


@dataclass(frozen=True, slots=True)
class Prices:
    """Milliseconds of a device: a verifying pass and each token in it; a drafted token, for each layer, and for each
    row and layer.
    """

    verify: float = 40.0
    token: float = 0.5
    layer: float = 0.8
    row_layer: float = 0.1

    @property
    def label(self) -> str:
        return (
            f"target {self.verify:g} ms a pass + {self.token:g} ms a token, drafter {self.layer:g} ms a layer + "
            f"{self.row_layer:g} ms a row and layer"
        )

    def verify_ms(self, num_tokens: int) -> float:
        return self.verify + self.token * num_tokens

    def draft_ms(self, exits: Sequence[int]) -> float:
        """One token for each of the rows, which leave at these exits."""
        return max(exits) * self.layer + self.row_layer * sum(exits)

    def curves(self, exits: tuple[int, ...]) -> CostCurves:
        """The same, as a target and its drafter would have been measured."""
        key = ModelKey(self.label, "slowed", "bf16", 1, "slowed")
        rows, depths, lengths = (1.0, 64.0), tuple(map(float, exits)), (1.0, 5.0)
        verify = [self.verify + self.token * n * t for n, t, _ in itertools.product(rows, (1, 9), (64, 1024))]
        draft = [
            length * depth * (self.layer + self.row_layer * n)
            for n, depth, _, length in itertools.product(rows, depths, (1, 16), lengths)
        ]
        flat = Curve(ROW_AXES, (rows,), (0.3, 1.0))
        prefill = Curve(PREFILL_AXES, ((16.0, 512.0),), (self.verify + 8, self.verify + 256))
        passes = Curve(VERIFY_AXES, (rows, (1.0, 9.0), (64.0, 1024.0)), tuple(verify))
        drafts = Curve(DRAFT_AXES, (rows, depths, (1.0, 16.0), lengths), tuple(draft))
        target = TargetCosts(key, passes, prefill, flat, 0.0)
        return CostCurves("slowed", target, DrafterCosts(key, drafts, flat, 0.0))
