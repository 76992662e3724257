"""A target's way to the pool over virtual links: link/ as it is, with another socket and another way to a new one."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from link.connection import Connection, Traffic
from link.discovery import Found, Need, PoolMember
from link.link import Link, OnMessage
from link.links import Links, TransportConfig
from link.transport import LinkedDraftClient
from protocol.wire import PoolMessage, encode_pool
from simulation.loop import Actor, Loop
from simulation.network import Faults, Wire
from simulation.pool import Replica

NEED = Need("table", ())


class VirtualConnection(Connection):
    """Both ends of a link between an actor and a replica. The socket is two wires."""

    def __init__(self, loop: Loop, owner: str, replica: Replica, delay_s: float, faults: Faults, seed: int) -> None:
        self.open = True
        self.replica = replica
        self._loop, self._owner, self._faults = loop, owner, faults
        self._rng = random.Random(seed)
        self._there = Wire(loop, delay_s, faults, self._rng, self._reach_pool)
        self._back = Wire(loop, delay_s, faults, self._rng, self._reach_target)
        self._inbox: deque[bytes] = deque()
        self._reader: Actor | None = None

    def send(self, message: bytes) -> bool:
        if self.open and not self._there.send(message, self._loop.now):
            self.cut()
        return True

    def wait(self, timeout_s: float) -> bool:
        return bool(self.ready([self], timeout_s))

    @staticmethod
    def ready(connections: Sequence[Connection], timeout_s: float) -> list[int]:
        own = [one for one in connections if isinstance(one, VirtualConnection)]
        if timeout_s > 0 and not any(one.has_come for one in own):
            loop = own[0]._loop
            for one in own:
                one._reader = loop.actor
            loop.wait(loop.now + timeout_s)
            for one in own:
                one._reader = None
        return [place for place, one in enumerate(own) if one.has_come]

    @property
    def has_come(self) -> bool:
        """Something to receive, the end included."""
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
            self.replica.drop(self._owner)
            self._wake()

    shut = close = cut

    @property
    def traffic(self) -> Traffic:
        return Traffic()

    def _reach_pool(self, data: bytes) -> None:
        if self.open:
            self.replica.receive(self._owner, data, self._reply, self.cut)

    def _reply(self, message: PoolMessage) -> None:
        """At the end of the pass that made it."""
        if self.open:
            told = self._faults.lie(message, self._rng) if self._faults.lie else message
            if not self._back.send(encode_pool(told), self.replica.clock()):
                self._loop.call_at(self.replica.clock(), self.cut)

    def _reach_target(self, data: bytes) -> None:
        if self.open:
            self._inbox.append(data)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            self._loop.wake(self._reader)


class Network:
    """The replicas there are, and what lies between them and the targets."""

    def __init__(self, loop: Loop, delay_s: float, faults: Faults, seed: int) -> None:
        """delay_s: one way."""
        self.loop = loop
        self.replicas: list[Replica] = []
        self.num_opened = 0
        self._delay_s, self._faults, self._seed = delay_s, faults, seed
        self._connections: list[VirtualConnection] = []

    @property
    def living(self) -> list[Replica]:
        return [one for one in self.replicas if one.open]

    def connect(self, replica: Replica, target: str) -> VirtualConnection:
        self.num_opened += 1
        owner, seed = f"{target}#{self.num_opened}", self._seed * 1000 + self.num_opened
        made = VirtualConnection(self.loop, owner, replica, self._delay_s, self._faults, seed)
        self._connections = [*(one for one in self._connections if one.open), made]
        return made

    def kill(self, replica: Replica) -> None:
        """At once, with everything that it knows."""
        replica.open = False
        for connection in self._connections:
            if connection.replica is replica:
                connection.cut()


class VirtualLinks(Links):
    """Found and opened by events."""

    def __init__(self, network: Network, target: str, config: TransportConfig, on_message: OnMessage) -> None:
        super().__init__(target, _nobody, NEED, config, network.loop.clock, on_message, None)
        self._network = network
        self._stopped = False

    def begin(self) -> None:
        """Connects to every replica, and looks for others from time to time."""
        if not self._stopped:
            self._look()
            self._network.loop.call_in(self._config.discover_every_s, self.begin)

    def end(self) -> None:
        self._stopped = True
        for route in self.routes.values():
            route.link.close()

    def _look(self) -> None:
        for replica in () if self._stopped else self._network.living:
            left_alone = self._avoid.get(replica.name, 0.0) > self._clock()
            if replica.name not in self.routes and not left_alone:
                self._use(member_of(replica), self._network.connect(replica, self._target))

    def _on_end(self, link: Link) -> None:
        super()._on_end(link)
        self._network.loop.call_in(self._config.lost_every_s, self._look)


class VirtualDraftClient(LinkedDraftClient):
    def __init__(self, network: Network, incarnation: str, config: TransportConfig) -> None:
        super().__init__(incarnation, _nobody, NEED, config, network.loop.clock)
        self.links = self._links = VirtualLinks(network, incarnation, config, self._on_message)


def member_of(replica: Replica) -> PoolMember:
    told, stats = replica.worker.describe(), replica.worker.stats()
    own = told.exits, NEED.vocabulary_hash, told.max_positions, stats
    return PoolMember("", replica.name, *own, limits=replica.limits)


async def _nobody() -> Found:
    return Found()
