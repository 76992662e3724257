"""Several targets and several draft replicas: what more replicas bring, and that nobody is left behind."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from drafters.limits import PoolLimits
from link.links import TransportConfig
from router.costs import CostCurves
from router.policy import Fixed
from simulation.models import Memory
from simulation.simulate import PoolSpec, Simulation, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import drawn
from targets.scheduler import SchedulerConfig
from tests.simulation.curves import linear_curves

EXITS = (8, 16)
GPU = linear_curves((14.0, 0.02, 0.02), (0.06, 0.004, 0.0004), EXITS, prefill=(14.0, 0.04), link_ms=0.3)
DRAFT_BOUND = linear_curves((2.0, 0.002, 0.0), (0.1, 0.03, 0.0004), EXITS, prefill=(2.0, 0.002), link_ms=0.3)
ROOMY = PoolLimits(max_rows=128)
RATES = drawn({8: 0.6, 16: 0.75})


def target(
    name: str, num_rows: int, num_tokens: int, num_prompt: int = 64, curves: CostCurves = GPU, length: int = 5
) -> TargetSpec:
    return TargetSpec(
        name,
        curves,
        lambda: Fixed(16, length),
        RATES,
        [Arrival(0.0, num_prompt, num_tokens)] * num_rows,
        SchedulerConfig(max_batch=num_rows, prefill_chunk=2048),
        transport=TransportConfig(1.0),
        memory=Memory(num_rows * (num_prompt + num_tokens + 64) // 16 + num_rows, 16, 4096),
    )


@pytest.mark.parametrize("num_tokens", [8, 60])
@pytest.mark.parametrize("position_ms", [0.01, 0.03, 0.08, 0.16])
def test_a_row_whose_context_is_being_read_does_not_hold_up_the_others(position_ms: float, num_tokens: int) -> None:
    """The eighth comes later with a prompt of 1,500 tokens; the pool takes 15 to 240 ms to read it, for a draft 7."""
    slow = linear_curves((14.0, 0.02, 0.0), (0.06, 0.004, position_ms / 16), EXITS, prefill=(1.0, 0.0), link_ms=0.3)
    seven = target("a", 8, 100, curves=slow)
    took = []
    for late in ([], [Arrival(0.2, 1500, num_tokens)]):
        spec = replace(seven, arrivals=[*seven.arrivals[:7], *late], memory=Memory())
        served = simulate([spec], PoolSpec()).targets[0].served
        took.append(fmean(request.ended_s or 0.0 for request in served[:7]))
    assert took[1] < 1.05 * took[0]


def drafted_per_s(found: Simulation) -> float:
    return sum(one.worker.stats().num_drafted for one in found.network.replicas) / found.elapsed_s


def test_a_pool_grows_with_its_replicas() -> None:
    """Two targets that draft more than one replica can give."""
    rates = {}
    for num_replicas in (1, 2, 4):
        pair = [target(name, 64, 30, curves=DRAFT_BOUND) for name in "ab"]
        rates[num_replicas] = drafted_per_s(simulate(pair, PoolSpec(num_replicas, ROOMY)))
    assert rates[2] > 1.8 * rates[1]
    assert rates[4] > 3.4 * rates[1]


@pytest.mark.parametrize("pass_rows", [16, 128])
def test_a_target_with_many_long_sequences_leaves_another_what_half_the_pool_would_give(pass_rows: int) -> None:
    """In a pass of 128 rows all have a place."""
    few = target("few", 4, 80)
    many = target("many", 64, 60, num_prompt=1000)
    limits = replace(ROOMY, pass_rows=pass_rows)
    alone = simulate([few], PoolSpec(limits=limits, slower=2.0)).targets[0].tokens_per_s
    beside = simulate([few, many], PoolSpec(limits=limits)).targets[0].tokens_per_s
    assert beside > 0.9 * alone
