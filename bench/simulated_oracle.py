"""What the simulator foretells of the oracle's table (bench/oracle_mirror.py), from what the stand-ins were told alone:
acceptance, second choices, what a pass and a drafted token take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.plan import DepthRule
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
from router.modes import Mode
from router.policy import Fixed
from router.simulate import Overlap, SimulatedPool, SimulatedTarget, closed_batch, simulate
from router.simulate_acceptance import acceptance_table, always
from router.simulate_ahead import AheadRound, Choices
from router.simulate_jobs import Flight, Job, Lead, Outcome, Resident
from router.simulate_mirror import MirrorRules
from router.simulate_pool import PoolRules

DEPTH = 1  # the oracle's only exit
PROMPT = 128  # tokens
STEPWISE = PoolRules(ahead=1, branch_ahead=1)  # messages are taken between two steps of the stand-in


class OracleRound(AheadRound):
    """As bench/oracle_pool.py drafts ahead: the lead in a step of its own, then all branches in one batch, which come
    whole.
    """

    __slots__ = ()

    def _lead(self, flight: Flight, resident: Resident) -> Lead:
        return Lead(self, resident, 0, flight.lead, None)

    def _riding(self, flight: Flight, goal: int) -> list[tuple[int, Job]]:
        return []

    def _tell(self, flight: Flight, outcome: Outcome) -> None:
        if flight.begun[outcome].job.is_done:
            super()._tell(flight, outcome)


@dataclass(frozen=True, slots=True)
class Speedup:
    """Of drafting ahead over drafting in turn."""

    acceptance: float
    cost: float
    length: int
    measured: float
    simulated: float


def speedups(made: Mapping[str, Any], seeds: int) -> list[Speedup]:
    """made: a result of bench/oracle_mirror."""
    return [_speedup(own, made["settings"], seeds) for own in made["cells"]]


def _speedup(own: Mapping[str, Any], settings: Mapping[str, Any], seeds: int) -> Speedup:
    ahead = MirrorRules(modes=(Mode.MIRROR,), choices=Choices(settings["runner_up"], ()), ahead=OracleRound)
    turn, mirror = (total_ms(own, settings, overlap, range(seeds)) for overlap in (None, ahead))
    return Speedup(own["acceptance"], own["cost"], own["length"], own["speedup"]["median"], turn / mirror)


def total_ms(own: Mapping[str, Any], settings: Mapping[str, Any], overlap: Overlap, seeds: Sequence[int]) -> float:
    """That a text of each seed takes, from its first token on."""
    profile = always(acceptance_table({DEPTH: (own["acceptance"],)}))
    curves = flat_curves(settings["verify_ms"], own["cost"] * settings["verify_ms"])
    policy, total = Fixed(DepthRule((DEPTH,)), own["length"]), 0.0
    for seed in seeds:
        requests = closed_batch(1, PROMPT, settings["max_tokens"], np.random.default_rng(seed))
        target = SimulatedTarget("", curves, lambda: policy, profile, requests, 1, overlap=overlap)
        (served,) = simulate([target], SimulatedPool(rules=STEPWISE), seed).targets[0].served
        total += served.last_ms - served.first_ms
    return total


def flat_curves(verify_ms: float, token_ms: float) -> CostCurves:
    """A pass and a token of the stand-ins take the same whatever is in them; contexts, link and the rest nothing."""
    key = ModelKey("oracle", "", "", 1, "")
    one, nothing = (1.0,), Curve(ROW_AXES, ((1.0,),), (0.0,))
    verify, prefill = Curve(VERIFY_AXES, (one, one, one), (verify_ms,)), Curve(PREFILL_AXES, (one,), (verify_ms,))
    draft = Curve(DRAFT_AXES, (one, (float(DEPTH),), one, (1.0, 2.0)), (token_ms, 2 * token_ms))
    return CostCurves("oracle", TargetCosts(key, verify, prefill, nothing, 0.0), DrafterCosts(key, draft, nothing, 0.0))
