"""A target's way to the pool over virtual links: link/transport.py with another socket and another way to a new one."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from link.connection import Connection, Traffic
from link.discovery import Need, PoolMember, choose
from link.link import Link
from link.link_round import Round
from link.transport import LinkedDraftClient, TransportConfig
from protocol.wire import PoolMessage, encode_pool
from simulation.loop import Actor, Loop
from simulation.network import Faults, Wire, lie
from simulation.pool import Replica

VOCABULARY = "table"


class VirtualConnection(Connection):
    """Both ends of a link between an actor and a replica. The socket is two wires."""

    def __init__(self, loop: Loop, owner: str, replica: Replica, delay_s: float, faults: Faults, seed: int) -> None:
        self.open = True
        self.on_arrival: Callable[[], None] = lambda: None
        self._loop, self._owner, self._replica, self._faults = loop, owner, replica, faults
        self._rng = random.Random(seed)
        self._there = Wire(loop, delay_s, faults, self._rng, self._reach_pool)
        self._back = Wire(loop, delay_s, faults, self._rng, self._reach_target)
        self._inbox: deque[bytes] = deque()
        self._reader: Actor | None = None
        self._num_sent = self._num_received = 0

    def send(self, message: bytes) -> bool:
        self._num_sent += len(message)
        if self.open and not self._there.send(message, self._loop.now):
            self.cut()
        return True

    def wait(self, timeout_s: float) -> bool:
        if self.open and not self._inbox and timeout_s > 0:
            self._reader = self._loop.actor
            self._loop.wait(self._loop.now + timeout_s)
            self._reader = None
        return bool(self._inbox) or not self.open

    def receive(self) -> list[bytes]:
        messages = list(self._inbox)
        self._inbox.clear()
        if not messages and not self.open:
            raise EOFError("the link was cut")
        return messages

    def cut(self) -> None:
        """Both ends see it at once."""
        if self.open:
            self.open = False
            self._replica.drop(self._owner)
            self._wake()

    shut = close = cut

    def flush(self) -> bool:
        return True

    @property
    def hung_up(self) -> bool:
        return not self.open

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._num_sent, self._num_received)

    def _reach_pool(self, data: bytes) -> None:
        if self.open:
            self._replica.receive(self._owner, data, self._reply, self.cut)

    def _reply(self, message: PoolMessage) -> None:
        """At the end of the pass that made it."""
        if not self.open:
            return
        if self._faults.lie and self._rng.random() < self._faults.lie:
            message = lie(message, self._rng)
        if not self._back.send(encode_pool(message), self._replica.clock()):
            self._loop.call_at(self._replica.clock(), self.cut)

    def _reach_target(self, data: bytes) -> None:
        if self.open:
            self._num_received += len(data)
            self._inbox.append(data)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            self._loop.wake(self._reader)
        else:
            self.on_arrival()


@dataclass(slots=True)
class Network:
    """The replicas there are, and what lies between them and the targets. delay_s: one way."""

    loop: Loop
    replicas: list[Replica]
    delay_s: float
    faults: Faults
    seed: int
    connections: list[tuple[Replica, VirtualConnection]] = field(default_factory=list)
    num_opened: int = 0

    def members(self) -> list[PoolMember]:
        return [self._member(one) for one in self.replicas if one.open]

    def connect(self, member: PoolMember, target: str) -> VirtualConnection:
        self.num_opened += 1
        replica = next(one for one in self.replicas if one.name == member.incarnation)
        owner = f"{target}#{self.num_opened}"
        seed = self.seed * 1000 + self.num_opened
        made = VirtualConnection(self.loop, owner, replica, self.delay_s, self.faults, seed)
        self.connections.append((replica, made))
        return made

    def kill(self, replica: Replica) -> None:
        replica.die()
        for of, connection in self.connections:
            if of is replica:
                connection.cut()
        self.connections = [(of, one) for of, one in self.connections if one.open]

    def _member(self, replica: Replica) -> PoolMember:
        told = replica.worker.describe()
        owners = sum(of is replica and one.open for of, one in self.connections)
        stats = replica.worker.stats()
        return PoolMember(
            "", replica.name, told.exits, VOCABULARY, told.max_positions, owners, stats, limits=replica.limits
        )


class VirtualDraftClient(LinkedDraftClient):
    def __init__(self, network: Network, incarnation: str, config: TransportConfig) -> None:
        super().__init__(incarnation, _nobody, Need(VOCABULARY, ()), config, network.loop.clock)
        self._network = network
        self._stopped = False

    def begin(self) -> None:
        """Connects to the best replica, and looks for a better one from time to time."""
        if not self._stopped:
            self._look()
            config = self._config
            self._network.loop.call_in(config.discover_every_s if self._link else config.lost_every_s, self.begin)

    def end(self) -> None:
        self._stopped = True
        if self._link is not None:
            self._link.close()

    def _on_end(self, link: Link) -> None:
        super()._on_end(link)
        self._network.loop.call_in(self._config.lost_every_s, self._look)

    def _look(self) -> None:
        if self._stopped:
            return
        loop, network = self._network.loop, self._network
        self._avoid = {name: until for name, until in self._avoid.items() if until > loop.now}
        members = [member for member in network.members() if member.incarnation not in self._avoid]
        best = choose(members, self.replica, self._incarnation)
        if best is None or best.incarnation == self.replica:
            return
        connection = network.connect(best, self._incarnation)
        old = self._use(best, connection)
        connection.on_arrival = self._on_arrival
        if old is not None:
            loop.call_in(self._config.deadline_s, old.close)

    def _read_aside(self, current: Round) -> None:
        """What arrives is read at once, see `_on_arrival`."""

    def _on_arrival(self) -> None:
        """While the target is in a pass, or at rest."""
        if self._backoff.resting and self._link is not None:
            self._link.read()


async def _nobody() -> Sequence[PoolMember]:
    return ()
