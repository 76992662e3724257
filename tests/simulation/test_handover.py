"""Short answers behind long prompts, one request after another: the pool reads each prompt while the target does."""

from __future__ import annotations

from functools import partial

import pytest

from router.costs import CostCurves
from router.policy import Goodput, Off, Policy
from router.tables import tables
from simulation.models import Memory
from simulation.simulate import Circumstances, PoolSpec, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import drawn
from targets.scheduler import SchedulerConfig
from tests.simulation.curves import linear_curves

EXIT, NUM_PROMPT, NUM_TOKENS, APART_S = 30, 640, 64, 4.0
# About SmolLM2 in bf16 and its blocks, a core each: a step 15 ms, a drafted token 5, a position of a prompt 1 in both.
COSTS = linear_curves((14.0, 1.0, 0.0), (0.16, 0.0, 0.03), (EXIT,), prefill=(0.0, 1.0), link_ms=0.3)
SLOW = linear_curves((24.0, 1.0, 0.0), (0.16, 0.0, 0.03), (EXIT,), prefill=(0.0, 1.0), link_ms=3.0)


def tokens_per_s(policy: partial[Policy], costs: CostCurves, rate: float) -> float:
    """Of the answers, behind their first tokens; the mean of the last ten of twelve."""
    arrivals = [Arrival(APART_S * number, NUM_PROMPT, NUM_TOKENS) for number in range(12)]
    config, memory = SchedulerConfig(prefill_chunk=256), Memory(200, 16, 1024)
    spec = TargetSpec("a", costs, policy, drawn({EXIT: rate}), arrivals, config, ahead=True, memory=memory)
    served = simulate([spec], PoolSpec(memory=memory)).targets[0].served[2:]
    return sum((NUM_TOKENS - 1) / ((one.ended_s or 0) - (one.first_s or 0)) for one in served) / len(served)


@pytest.mark.parametrize(
    ("costs", "rate", "least"),
    [
        (COSTS, 0.9, 1.5),
        (COSTS, 0.7, 1.15),
        (COSTS, 0.02, 0.97),
        (
            SLOW,
            0.5,
            1.05,
        ),  # off now and then: the end of an answer shuts no door
    ],
)
def test_drafts_begin_with_the_answer_where_they_pay_and_nothing_is_lost_where_they_do_not(
    costs: CostCurves, rate: float, least: float
) -> None:
    router, off = partial(Goodput, tables(costs, (EXIT,), 12, 8)), partial(Off)
    assert tokens_per_s(router, costs, rate) > least * tokens_per_s(off, costs, rate)


def test_a_target_that_is_overloaded_leaves_another_some_of_its_drafts() -> None:
    """Of one pool: the second target's prompts are long, and there are more than it can answer."""
    first = [Arrival(2.0 * number, 100, 300) for number in range(6)]
    second = [Arrival(1.0 * number, 900, 32) for number in range(24)]
    rates = {}
    for policy in (partial(Off), partial(Goodput, tables(COSTS, (EXIT,), 12, 8))):
        specs = [
            TargetSpec(name, COSTS, policy, drawn({EXIT: 0.85}), arrivals, ahead=True, memory=Memory(2000, 16, 1024))
            for name, arrivals in (("a", first), ("b", second))
        ]
        served = simulate(specs, PoolSpec(memory=Memory(2000, 16, 1024)), Circumstances(seed=2)).targets[0].served
        rates[policy.func] = sum(299 / ((one.ended_s or 0) - (one.first_s or 0)) for one in served) / len(served)
    assert rates[Goodput] > 1.1 * rates[Off]
