"""A whole simulation: targets with requests, draft replicas and a network between them, until all texts have ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drafters.limits import PoolLimits
from link.links import TransportConfig
from model.batch import RaggedBatch
from protocol.errors import ConfigError
from router.costs import CostCurves
from router.policy import Policy
from simulation.costs import PoolCharge, overheads, pass_ms
from simulation.links import Network, VirtualDraftClient, VirtualLinks
from simulation.loop import Loop
from simulation.models import Memory, simulated_drafter, simulated_target
from simulation.network import NONE, Faults
from simulation.pool import Replica
from simulation.target import Arrival, Target, requests_of
from simulation.text import Acceptance, World
from targets.assemble import make_stepper
from targets.scheduler import SchedulerConfig


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """One target replica. policy: makes a new one. ahead: whether it may draft ahead."""

    name: str
    curves: CostCurves
    policy: Callable[[], Policy]
    acceptance: Acceptance
    arrivals: Sequence[Arrival]
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    ahead: bool = False
    transport: TransportConfig = field(default_factory=TransportConfig)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """slower: how many times longer than profiled its passes take."""

    num_replicas: int = 1
    limits: PoolLimits = field(default_factory=PoolLimits)
    memory: Memory = field(default_factory=Memory)
    slower: float = 1.0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """seed: of texts, times and faults. noise: of a target's pass, relative."""

    seed: int = 0
    noise: float = 0.0
    faults: Faults = NONE
    vocab_size: int = 1000


def simulate(
    targets: Sequence[TargetSpec], pool: PoolSpec | None = None, around: Circumstances | None = None
) -> Simulation:
    """One that has run."""
    simulation = Simulation(targets, pool, around or Circumstances())
    simulation.run()
    return simulation


class Simulation:
    def __init__(self, targets: Sequence[TargetSpec], pool: PoolSpec | None, around: Circumstances) -> None:
        """Raises ConfigError for targets whose acceptance names different exits."""
        exits = {target.acceptance.exits for target in targets}
        if len(exits) > 1:
            raise ConfigError(f"the targets' acceptance names different exits: {sorted(exits)}")
        self.loop = Loop()
        self.elapsed_s = 0.0
        acceptance = [target.acceptance for target in targets]
        self.world = World(around.vocab_size, acceptance, around.seed, lambda: 1e3 * self.loop.now)
        self.links: list[VirtualLinks] = []
        self._exits = exits.pop()
        self._pool = pool
        self._around = around
        self._rng = random.Random(around.seed)
        self._curves = next((target.curves for target in targets if target.curves.drafter), targets[0].curves)
        delay_s = 0.5e-3 * self._curves.link_ms(8) if pool else 0.0
        self.network = Network(self.loop, delay_s, around.faults, around.seed)
        for number in range(pool.num_replicas if pool else 0):
            self.add_replica(f"replica {number}")
        self.targets = [self._make_target(number, spec) for number, spec in enumerate(targets)]

    def run(self) -> None:
        """Raises AssertionError when something is left of a text that has ended, or books contradict themselves."""
        for links in self.links:
            links.begin()
        self.loop.run((target.name, target.run) for target in self.targets)
        self.elapsed_s = self.loop.now
        self._end()

    def check(self) -> None:
        """Raises AssertionError when the books contradict themselves."""
        for target in self.targets:
            target.stepper.model.ledger.check()
        for replica in self.network.living:
            replica.worker.check()

    def add_replica(self, name: str) -> None:
        assert self._pool is not None
        charge = PoolCharge(self._curves, self._pool.slower)
        drafter = simulated_drafter(self.world, self._exits, charge, self._pool.memory)
        self.network.replicas.append(Replica(self.loop, name, drafter, charge, self._pool.limits))

    def _make_target(self, number: int, spec: TargetSpec) -> Target:
        def charge(start: int, stop: int, batch: RaggedBatch) -> None:
            noise = self._rng.lognormvariate(0.0, self._around.noise) if self._around.noise else 1.0
            self.loop.sleep(1e-3 * noise * pass_ms(spec.curves, batch))

        model = simulated_target(self.world, charge, spec.memory)
        client = VirtualDraftClient(self.network, spec.name, spec.transport) if self._pool else None
        if client is not None:
            self.links.append(client.links)
        stepper = make_stepper(
            model,
            spec.policy(),
            client,
            spec.config,
            spec.name,
            ahead=spec.ahead,
            clock=self.loop.clock,
        )
        served = requests_of(number, spec.arrivals, self.world.vocab_size)
        return Target(spec.name, self.loop, stepper, served, overheads(spec.curves, spec.config.max_batch))

    def _end(self) -> None:
        """Hangs up, lets what is on its way arrive, and looks at the books."""
        for links in self.links:
            links.end()
        self.loop.run_until(self.loop.now + 1.0)
        self.check()
        for target in self.targets:
            assert not target.stepper.model.ledger.sequences, "a text has ended, and its pages are held"
        for replica in self.network.living:
            assert not replica.worker.stats().num_sequences, "the links have ended, and sequences are left"
            assert replica.drafter.ledger.num_free == replica.drafter.ledger.num_pages, "pages are left"
