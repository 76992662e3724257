"""The client of a link as the contract of draft clients meets it: a real server and socket around the given worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from drafters.worker import DraftWorker
from link.discovery import Found, Need, PoolMember
from link.links import TransportConfig
from link.pool_server import PoolServer
from link.pool_thread import PoolThread
from link.secret import Secret
from link.transport import LinkedDraftClient
from protocol.draft import DraftClient
from protocol.limits import limits_of
from tests.deployments.harness import HASH, LoopThread, moved_by_waiting, wait_until


class Replica:
    """What a draft replica is without Ray. Clients of the same worker share one, as a worker has one thread."""

    def __init__(self, worker: DraftWorker) -> None:
        self.runner = LoopThread(asyncio.new_event_loop())
        self.thread = PoolThread(worker, worker._clock)
        self.thread.start()
        self.num_clients = 0
        told = worker.describe()
        self.secret, limits = Secret.fresh(), limits_of(64, told.max_positions)
        self.server = PoolServer(self.thread, self.secret, limits)
        address = self.server.start("127.0.0.1", (0, 0))
        self.member = PoolMember(
            address,
            "pool",
            told.exits,
            HASH,
            told.max_positions,
            self.thread.stats(),
            limits=limits,
            secret=self.secret,
        )

    async def discover(self) -> Found:
        return Found((self.member,))

    def close(self) -> None:
        self.server.stop()
        self.thread.stop()
        self.runner.close()


def replica_of(worker: DraftWorker) -> Replica:
    """While a client of it is linked."""
    return _REPLICAS[worker]


_REPLICAS: WeakKeyDictionary[DraftWorker, Replica] = WeakKeyDictionary()


@contextmanager
def linked(
    worker: DraftWorker, incarnation: str, deadline_s: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[DraftClient]:
    replica = _REPLICAS.get(worker) or _REPLICAS.setdefault(worker, Replica(worker))
    replica.num_clients += 1

    async def start() -> LinkedDraftClient:
        need = Need(HASH, replica.member.exits)
        made = LinkedDraftClient(incarnation, replica.discover, need, TransportConfig(deadline_s), clock)
        await made.start()
        return made

    client = replica.runner.run(start())
    try:
        wait_until(lambda: client.replica)
        with moved_by_waiting(clock):
            yield client
    finally:
        replica.runner.run(client.stop())
        replica.num_clients -= 1
        if not replica.num_clients:
            del _REPLICAS[worker]
            replica.close()
