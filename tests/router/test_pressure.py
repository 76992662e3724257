"""Four targets on one slow pool, texts that begin hard, and no time for probes: what a rule was like at first must not
keep it from being played.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import fmean

import pytest

from protocol.plan import DepthRule
from router.acceptance import AcceptanceConfig
from router.costs import CostCurves, Curve
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy
from router.simulate import SimulatedPool, SimulatedTarget, simulate
from router.simulate_acceptance import Profile, Stage, acceptance_table
from router.simulate_pool import PoolRules
from router.simulate_target import Request
from tests.router.curves import curves
from tests.sizes import quick

EXITS = (2, 4, 6)
RULES = tuple(DepthRule((exit_,)) for exit_ in EXITS)
HARD = acceptance_table({2: [0.55], 4: [0.57], 6: [0.58]}, concentration=2.0)
EASY = acceptance_table({2: [0.86], 4: [0.885], 6: [0.89]}, concentration=2.0)
TEXT = Profile((Stage(HARD), Stage(EASY, from_token=24)))
SLOW = 40.0  # times the hand-made curves: a pass takes 40 ms


def slow(curve: Curve) -> Curve:
    return replace(curve, ms=tuple(SLOW * ms for ms in curve.ms))


@cache
def devices() -> CostCurves:
    made = curves(token=0.0125, layer=0.02, row=0.0025)
    assert made.drafter is not None
    target = replace(made.target, verify=slow(made.target.verify))
    return replace(made, target=target, drafter=replace(made.drafter, draft=slow(made.drafter.draft)))


def router(acceptance: AcceptanceConfig) -> Policy:
    return Goodput(devices(), GoodputConfig(RULES, EXITS, linked=True, probe_share=0.0, acceptance=acceptance))


def rates(policy: Callable[[], Policy], load: int, seed: int) -> list[float]:
    """Tokens per second of each target."""
    targets = [
        SimulatedTarget(
            str(name),
            devices(),
            policy,
            TEXT,
            [Request(0.0, 64, 200, seed + 1000 * name + number) for number in range(3 * load)],
            max_batch=load,
        )
        for name in range(4)
    ]
    report = simulate(targets, SimulatedPool(1, PoolRules(ahead=1)), seed, noise=0.02)
    return [target.tokens_per_second for target in report.targets]


def share_of_best(load: int, acceptance: AcceptanceConfig) -> float:
    fixed = [fmean(rates(lambda k=k: Fixed(RULES[0], k), load, seed=0)) for k in (2, 4, 6)]  # type: ignore[misc]
    return fmean(fmean(rates(lambda: router(acceptance), load, seed)) for seed in range(4)) / max(fixed)


@pytest.mark.parametrize(("load", "share"), quick([(8, 0.92), (4, 0.87), (16, 0.93)], 1))
def test_under_pressure_targets_come_close_to_the_best_fixed_setting(load: int, share: float) -> None:
    """What is learned in the run's own first seconds included."""
    assert share_of_best(load, AcceptanceConfig()) >= share


@pytest.mark.slow
def test_a_first_impression_that_stays_would_cost_more_than_that() -> None:
    assert share_of_best(8, AcceptanceConfig(doubt=0.0, kin_tokens=4.0, per_layer=0.12)) < 0.92


def test_no_target_is_slower_than_without_drafts() -> None:
    off = min(rates(Off, 8, seed=0))
    assert min(rates(lambda: router(AcceptanceConfig()), 8, seed=0)) >= 0.98 * off
