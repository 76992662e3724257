"""A whole simulation: targets with requests, draft replicas and the network between them, run until all texts have ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from drafters.residents import PoolLimits
from link.transport import TransportConfig
from model.pages import PageLedger
from protocol.errors import ConfigError
from protocol.plan import Mode
from router.costs import CostCurves
from router.policy import Policy
from simulation.costs import PoolTimes, TargetTimes
from simulation.links import Network, VirtualDraftClient
from simulation.loop import Loop
from simulation.models import Memory, PoolCharge, simulated_drafter, simulated_target
from simulation.network import NONE, Faults
from simulation.pool import Replica
from simulation.stepper import Record, Recorder, make_stepper
from simulation.target import Arrival, Served, Target, requests_of
from simulation.text import Acceptance, World
from targets.engine import EngineConfig

VOCAB = 1000


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """One target replica. policy: makes a new one. modes: how its rounds may be played."""

    name: str
    curves: CostCurves
    policy: Callable[[], Policy]
    acceptance: Acceptance
    arrivals: Sequence[Arrival]
    config: EngineConfig = field(default_factory=EngineConfig)
    modes: tuple[Mode, ...] = (Mode.SERIAL,)
    transport: TransportConfig = TransportConfig()
    memory: Memory = Memory()


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """slower: how many times longer than profiled its passes take. delay_s: of a message, one way; None: as profiled."""

    num_replicas: int = 1
    limits: PoolLimits = PoolLimits()
    memory: Memory = Memory()
    slower: float = 1.0
    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """seed: of texts, times and faults. noise: of a target's pass, relative. second, early: as World's."""

    seed: int = 0
    noise: float = 0.0
    faults: Faults = NONE
    vocab_size: int = VOCAB
    second: float = 0.5
    early: tuple[float, ...] = (0.5, 0.3)
    target_ledger: Callable[[int, int], PageLedger] = PageLedger
    pool_ledger: Callable[[int, int], PageLedger] = PageLedger


@dataclass(frozen=True, slots=True)
class TargetResult:
    """records: one for each round. num_failures: of parts that no request depends on."""

    name: str
    served: tuple[Served, ...]
    records: tuple[Record, ...]
    elapsed_s: float
    num_failures: int

    @property
    def num_tokens(self) -> int:
        return sum(len(one.tokens) for one in self.served)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    """busy: share of the time that it was in passes."""

    busy: float
    num_drafted: int


@dataclass(frozen=True, slots=True)
class Result:
    targets: tuple[TargetResult, ...]
    replicas: tuple[ReplicaResult, ...]
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(one.num_tokens for one in self.targets) / self.elapsed_s if self.elapsed_s else 0.0


def simulate(
    targets: Sequence[TargetSpec], pool: PoolSpec | None = None, around: Circumstances = Circumstances()
) -> Result:
    """Raises AssertionError when something is left of a text that has ended, or the pool's books contradict themselves."""
    return Simulation(targets, pool, around).run()


class Simulation:
    def __init__(self, targets: Sequence[TargetSpec], pool: PoolSpec | None, around: Circumstances) -> None:
        exits = {target.acceptance.exits for target in targets}
        if len(exits) > 1:
            raise ConfigError(f"the targets' acceptance names different exits: {sorted(exits)}")
        self.loop = Loop()
        self.exits = exits.pop()
        self.around = around
        self._pool = pool
        self._rng = random.Random(around.seed)
        acceptance = [target.acceptance for target in targets]
        self.world = World(around.vocab_size, acceptance, around.second, around.early, self.loop.clock)
        self._curves = next((target.curves for target in targets if target.curves.drafter), targets[0].curves)
        self.network = self._make_network(pool) if pool else None
        self.clients: list[VirtualDraftClient] = []
        self._recorders: list[Recorder] = []
        self.targets = [self._make_target(number, spec) for number, spec in enumerate(targets)]
        self._specs = targets

    def run(self) -> Result:
        for client in self.clients:
            client.begin()
        if self.network and self.around.faults.deaths:
            self._plan_death()
        self.loop.run([(spec.name, target.run) for spec, target in zip(self._specs, self.targets, strict=True)])
        result = self._result()
        self._end()
        return result

    def _make_network(self, pool: PoolSpec) -> Network:
        delay_s = 0.5e-3 * self._curves.link_ms(8) if pool.delay_s is None else pool.delay_s
        network = Network(self.loop, [], delay_s, self.around.faults, self.around.seed)
        for number in range(pool.num_replicas):
            network.replicas.append(self._make_replica(pool, f"replica {number}"))
        return network

    def _make_replica(self, pool: PoolSpec, name: str) -> Replica:
        charge = PoolCharge(PoolTimes(self._curves, self.exits, pool.slower))
        ledger = self.around.pool_ledger(pool.memory.num_pages, pool.memory.page_size)
        drafter = simulated_drafter(self.world, self.exits, charge, pool.memory, ledger)
        return Replica(self.loop, name, drafter, charge, pool.limits)

    def _make_target(self, number: int, spec: TargetSpec) -> Target:
        times = TargetTimes(spec.curves)
        ledger = self.around.target_ledger(spec.memory.num_pages, spec.memory.page_size)
        model = simulated_target(self.world, times, partial(self._spend, self._rng.random()), spec.memory, ledger)
        client = None
        if self.network is not None:
            client = VirtualDraftClient(self.network, spec.name, spec.transport)
            self.clients.append(client)
        recorder = Recorder(spec.policy())
        self._recorders.append(recorder)
        config = replace(spec.config, incarnation=spec.name)
        stepper, fences = make_stepper(model, recorder, client, config, spec.modes, self.loop.clock)
        overhead = [times.overhead_ms(rows) for rows in range(config.max_batch + 1)]
        served = requests_of(number, spec.arrivals, self.world.vocab_size)
        return Target(self.loop, stepper, fences, served, overhead)

    def _spend(self, seed: float, ms: float) -> None:
        noise = self.around.noise and self._rng.lognormvariate(0.0, self.around.noise)
        self.loop.sleep(1e-3 * ms * (noise or 1.0))

    def _plan_death(self) -> None:
        """The replica that dies comes back as another after a second."""
        self.loop.call_in(self._rng.expovariate(self.around.faults.deaths), self._kill_one)

    def _kill_one(self) -> None:
        network, pool = self.network, self._pool
        assert network is not None and pool is not None
        living = [one for one in network.replicas if one.open]
        if living:
            victim = self._rng.choice(living)
            network.kill(victim)
            name = f"{victim.name}'"
            self.loop.call_in(1.0, lambda: network.replicas.append(self._make_replica(pool, name)))
        self._plan_death()

    def _result(self) -> Result:
        elapsed = self.loop.now
        replicas = self.network.replicas if self.network else []
        found = [
            TargetResult(
                spec.name,
                tuple(target.served),
                tuple(recorder.records),
                max((one.ended_s or 0.0 for one in target.served), default=0.0),
                target.fences.num_failures,
            )
            for spec, target, recorder in zip(self._specs, self.targets, self._recorders, strict=True)
        ]
        pool = tuple(ReplicaResult(one.busy_s / elapsed if elapsed else 0.0, one.num_drafted) for one in replicas)
        return Result(tuple(found), pool, elapsed)

    def _end(self) -> None:
        """Hangs up, lets what is on its way arrive, and looks at the books."""
        for client in self.clients:
            client.end()
        self.loop.run_until(self.loop.now + 1.0)
        self.check()
        for target in self.targets:
            assert not target.stepper.model.ledger.sequences, "a text has ended, and its pages are held"
        for replica in self.network.replicas if self.network else ():
            if replica.open:
                assert not replica.worker.stats().num_sequences, "the links have ended, and sequences are left"
                assert replica.drafter.ledger.num_free == replica.drafter.ledger.num_pages, "pages are left"

    def check(self) -> None:
        """Raises AssertionError when the books contradict themselves."""
        for target in self.targets:
            target.stepper.model.ledger.check()
        for replica in self.network.replicas if self.network else ():
            if replica.open:
                replica.worker.check()
