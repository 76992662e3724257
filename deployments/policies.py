"""From the speculation section of a config to the policy of a target.

A fixed depth and a table are there from the start. An adaptive policy chooses from the exits of the drafter at their
costs, which a draft replica tells: until the first one does, decoding is plain.
"""

from __future__ import annotations

from deployments.config_speculation import (
    AdaptiveSpeculation,
    EmaSpeculation,
    FixedSpeculation,
    Ladder,
    Speculation,
    TableSpeculation,
)
from protocol.plan import DepthRule, Mode, cascade
from router.costs import CostCurves
from router.policy import Ema, Fixed, Goodput, Off, Policy, Table
from router.tables import tables


def policy(speculation: Speculation | None) -> Policy:
    """What a target can start with; for an adaptive policy that is plain decoding."""
    mode = speculation.mirror.modes[-1] if speculation and speculation.mirror else Mode.SERIAL
    if isinstance(speculation, FixedSpeculation):
        return Fixed(depth_rule(speculation), speculation.length, mode)
    if isinstance(speculation, TableSpeculation):
        return Table(depth_rule(speculation), tuple(speculation.table.items()), mode)
    return Off()


def adaptive(settings: AdaptiveSpeculation, curves: CostCurves, exits: tuple[int, ...], max_rows: int) -> Ema | Goodput:
    """exits: the drafter's. Raises ConfigError for curves without a drafter."""
    costs = tables(curves, settings.exits or exits, settings.length, max_rows)
    return Ema(costs) if isinstance(settings, EmaSpeculation) else Goodput(costs)


def longest_draft(speculation: Speculation | None) -> int | None:
    """The longest draft that a request may ask for; None without speculation, where it makes no difference."""
    if speculation is None:
        return None
    if speculation.request_length is not None:
        return speculation.request_length
    return max(speculation.table.values()) if isinstance(speculation, TableSpeculation) else speculation.length


def depth_rule(ladder: Ladder) -> DepthRule:
    if ladder.depth != "cascade":
        return DepthRule((ladder.depth,))
    return cascade(ladder.exits, ladder.thresholds)


def needed_exits(speculation: Speculation) -> tuple[int, ...]:
    """What the drafter must have; empty: any will do."""
    if isinstance(speculation, AdaptiveSpeculation):
        return speculation.exits or ()
    return depth_rule(speculation).exits
