"""Short answers behind long prompts, one request after another: the pool reads each prompt while the target does."""

from __future__ import annotations

from functools import partial

import pytest

from router.policy import Goodput, Off, Policy
from router.tables import tables
from simulation.models import Memory
from simulation.simulate import PoolSpec, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import drawn
from targets.scheduler import SchedulerConfig
from tests.simulation.curves import linear_curves

EXIT, NUM_PROMPT, NUM_TOKENS, APART_S = 30, 640, 64, 3.0
# About SmolLM2 in bf16 and its blocks, a core each: a step 15 ms, a drafted token 5, a position of a prompt 1 in both.
COSTS = linear_curves((14.0, 1.0, 0.0), (0.16, 0.0, 0.03), (EXIT,), prefill=(0.0, 1.0), link_ms=0.3)


def tokens_per_s(policy: partial[Policy], rate: float) -> float:
    """Of the answers, behind their first tokens; the mean of the last ten of twelve."""
    arrivals = [Arrival(APART_S * number, NUM_PROMPT, NUM_TOKENS) for number in range(12)]
    memory = Memory(200, 16, 1024)
    spec = TargetSpec(
        "a", COSTS, policy, drawn({EXIT: rate}), arrivals, SchedulerConfig(prefill_chunk=256), ahead=True, memory=memory
    )
    served = simulate([spec], PoolSpec(memory=memory)).targets[0].served[2:]
    return sum((NUM_TOKENS - 1) / ((one.ended_s or 0) - (one.first_s or 0)) for one in served) / len(served)


@pytest.mark.parametrize(("rate", "least"), [(0.9, 1.5), (0.7, 1.15), (0.02, 0.97)])
def test_drafts_begin_with_the_answer_where_they_pay_and_nothing_is_lost_where_they_do_not(
    rate: float, least: float
) -> None:
    router, off = partial(Goodput, tables(COSTS, (EXIT,), 12, 8)), partial(Off)
    assert tokens_per_s(router, rate) > least * tokens_per_s(off, rate)
