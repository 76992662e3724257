"""Several targets and several draft replicas: what more replicas bring, and that nobody is left behind."""

from __future__ import annotations

from link.transport import TransportConfig
from protocol.plan import DepthRule
from router.policy import Fixed, Off
from simulation.models import Memory
from simulation.simulate import Circumstances, PoolSpec, Result, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import drawn
from targets.scheduler import SchedulerConfig
from tests.simulation.curves import linear_curves

EXITS = (8, 16)
GPU = linear_curves((14.0, 0.02, 0.02), (0.06, 0.004, 0.0004), EXITS, prefill=(14.0, 0.04), link_ms=0.3)
RATES = drawn({8: 0.6, 16: 0.75})


def target(name: str, num_rows: int, num_tokens: int, num_prompt: int = 64, length: int = 5) -> TargetSpec:
    return TargetSpec(
        name,
        GPU,
        (lambda: Fixed(DepthRule((16,)), length)) if length else Off,
        RATES,
        [Arrival(0.0, num_prompt, num_tokens)] * num_rows,
        SchedulerConfig(max_batch=num_rows, prefill_chunk=2048),
        transport=TransportConfig(1.0),
        memory=Memory(num_rows * (num_prompt + num_tokens + 64) // 16 + num_rows, 16, 4096),
    )


def drafted_per_s(result: Result) -> float:
    return sum(one.num_drafted for one in result.replicas) / result.elapsed_s


def test_a_row_whose_context_is_still_being_run_does_not_hold_up_the_others() -> None:
    """One of eight comes later, with a long prompt."""
    around = Circumstances(seed=1)
    alone, beside = [], []
    for late in ([], [Arrival(0.3, 1500, 30)]):
        spec = target("a", 8, 60)
        spec = TargetSpec(
            spec.name,
            GPU,
            spec.policy,
            RATES,
            [*spec.arrivals[:7], *late],
            spec.config,
            transport=TransportConfig(1.0),
            memory=Memory(),
        )
        result = simulate([spec], PoolSpec(memory=Memory()), around)
        own = [one.ended_s for one in result.targets[0].served[:7]]
        (beside if late else alone).append(max(moment or 0.0 for moment in own))
    assert beside[0] < 3 * alone[0]
