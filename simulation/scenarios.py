"""One closed batch, as a bench cell is: n sequences of one target that begin together and end together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from link.links import TransportConfig
from protocol.record import RoundRecord
from router.costs import CostCurves
from router.policy import Policy
from simulation.models import Memory
from simulation.simulate import Circumstances, PoolSpec, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import Acceptance
from targets.scheduler import SchedulerConfig

SPARE, PAGE = 128, 16  # positions of a sequence beyond its text, which are drafted and refused, and of a page


@dataclass(frozen=True, slots=True)
class Scenario:
    """num_tokens: of each text, the first of which its prompt gives."""

    curves: CostCurves
    acceptance: Acceptance
    num_rows: int
    num_tokens: int = 200
    num_prompt: int = 64
    ahead: bool = False
    deadline_s: float = 1.0
    pool: PoolSpec = field(default_factory=PoolSpec)
    around: Circumstances = field(default_factory=Circumstances)


@dataclass(frozen=True, slots=True)
class Outcome:
    """tokens_per_s: of the batch, from its first token on. records: of its rounds, in order."""

    tokens_per_s: float
    records: tuple[RoundRecord, ...]
    texts: tuple[tuple[int, ...], ...]


def run(scenario: Scenario, policy: Callable[[], Policy]) -> Outcome:
    """policy: makes a new one."""
    length = scenario.num_prompt + scenario.num_tokens + SPARE
    memory = Memory(scenario.num_rows * (length // PAGE + 1), PAGE, length)
    drafter = Memory(2 * memory.num_pages, PAGE, length)
    arrivals = [Arrival(0.0, scenario.num_prompt, scenario.num_tokens)] * scenario.num_rows
    config = SchedulerConfig(scenario.num_rows, prefill_chunk=scenario.num_rows * scenario.num_prompt)
    transport = TransportConfig(scenario.deadline_s)
    own = scenario.curves, policy, scenario.acceptance, arrivals, config, scenario.ahead, transport, memory
    limits = replace(scenario.pool.limits, max_rows=max(scenario.pool.limits.max_rows, scenario.num_rows))
    pool = replace(scenario.pool, memory=drafter, limits=limits)
    target = simulate([TargetSpec("target", *own)], pool, scenario.around).targets[0]
    first = max(one.first_s or 0.0 for one in target.served)
    rate = (target.num_tokens - scenario.num_rows) / (target.elapsed_s - first)
    return Outcome(rate, tuple(target.records), tuple(tuple(one.tokens) for one in target.served))
