"""From the speculation section of a config to the policy of a target.

A fixed depth is there from the start. An adaptive policy chooses from the exits of the drafter at their costs, which a
draft replica tells: until the first one does, decoding is plain.
"""

from __future__ import annotations

from deployments.config import TargetConfig
from deployments.config_speculation import (
    AdaptiveSpeculation,
    EmaSpeculation,
    FixedSpeculation,
    GoodputSpeculation,
    Speculation,
)
from protocol.errors import ConfigError
from protocol.plan import Mode
from router.costs import CostCurves
from router.policy import Ema, Fixed, Goodput, Off, Policy
from router.tables import tables


def policy(speculation: Speculation | None) -> Policy:
    """What a target can start with; for an adaptive policy that is plain decoding."""
    mode = Mode.AHEAD if speculation and speculation.ahead else Mode.IN_TURN
    if isinstance(speculation, FixedSpeculation):
        return Fixed(speculation.depth, speculation.length, mode)
    return Off()


def adaptive(settings: AdaptiveSpeculation, curves: CostCurves, exits: tuple[int, ...], max_rows: int) -> Ema | Goodput:
    """exits: the drafter's. Raises ConfigError for curves without a drafter."""
    costs = tables(curves, settings.exits or exits, settings.length, max_rows)
    return Ema(costs) if isinstance(settings, EmaSpeculation) else Goodput(costs)


def drafts_ahead(target: TargetConfig, *, apart: bool, translates: bool) -> bool:
    """Whether drafts may come ahead. Where the config does not say, the router chooses, if the pool is apart and
    reads the target's own tokens.

    translates: whether the drafter has another tokenizer. Raises ConfigError where drafts are to come ahead from one.
    """
    speculation = target.speculation
    if speculation is None:
        return False
    if speculation.ahead and translates:
        raise ConfigError(
            f"target {target.name} is to be drafted for while it verifies, but the pool has another tokenizer, and a "
            "draft through a translation does not come ahead; leave ahead: on out"
        )
    if speculation.ahead is not None:
        return speculation.ahead
    return isinstance(speculation, GoodputSpeculation) and apart and not translates


def longest_draft(speculation: Speculation | None) -> int | None:
    """The longest draft that a request may ask for; None without speculation, where it makes no difference."""
    if speculation is None:
        return None
    return speculation.length if speculation.request_length is None else speculation.request_length


def needed_exits(speculation: Speculation) -> tuple[int, ...]:
    """What the drafter must have; empty: any will do."""
    if isinstance(speculation, FixedSpeculation):
        return (speculation.depth,)
    return speculation.exits or ()
