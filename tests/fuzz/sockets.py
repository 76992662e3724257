"""Hostile messages over real links to a real server, beside a target that drafts there all the while."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from drafters.limits import PoolLimits
from drafters.worker import DraftWorker
from link.discovery import Found, Need, PoolMember
from link.links import TransportConfig
from link.pool_server import PoolServer
from link.pool_thread import PoolThread
from link.secret import Secret
from link.transport import LinkedDraftClient
from tests.deployments.harness import HASH, LoopThread, wait_until
from tests.fuzz.game import NUM_ROWS, Victim, limits
from tests.fuzz.integers import IntegerDrafter
from tests.fuzz.messages import Messages
from tests.link.strangers import connected, proved, send

BURST = 8  # messages of a link, at most
ROUND_EVERY = 20  # links


def over_sockets(num_messages: int, seed: int) -> str:
    """What it came to."""
    rng, messages = random.Random(seed), Messages(seed + 1)
    with replica() as (thread, server, victim, secret, address):
        done = links = 0
        honest = Victim(seed)
        while done < num_messages:
            burst = [messages.to_pool() for _ in range(rng.randint(1, BURST))]
            if rng.random() < 0.1:
                with closing(connected(address)) as sock, suppress(OSError):
                    sock.sendall(b"".join(burst) or b"?")
            else:
                with closing(proved(address, secret, f"hostile-{links % 3}")) as sock:
                    send(sock, *burst)
            done, links = done + len(burst), links + 1
            if links % ROUND_EVERY == 0:
                honest.take(victim.draft(honest.ask()))
        honest.take(victim.draft(honest.ask()))
        wait_until(lambda: len(server._targets) == 1)
        wait_until(lambda: thread.stats().num_sequences == 3)
        assert thread.heartbeat_age_s() < 60, "the thread has ended"
        return f"{done} messages over {links} links, {honest.num_right} of the victim's drafts right"


@contextmanager
def replica() -> Iterator[tuple[PoolThread, PoolServer, LinkedDraftClient, Secret, str]]:
    """And a client of it."""
    secret = Secret.fresh()
    worker = DraftWorker(IntegerDrafter(), PoolLimits(max_rows=NUM_ROWS), time.monotonic)
    thread, told = PoolThread(worker, time.monotonic), worker.describe()
    thread.start()
    server = PoolServer(thread, secret, limits())
    address = server.start("127.0.0.1", (0, 0))
    member = PoolMember(address, "pool", told.exits, HASH, 128, thread.stats(), limits=limits(), secret=secret)
    runner = LoopThread(asyncio.new_event_loop())

    async def discover() -> Found:
        return Found((member,))

    async def start() -> LinkedDraftClient:
        made = LinkedDraftClient("victim", discover, Need(HASH, told.exits), TransportConfig(10.0))
        await made.start()
        return made

    client = runner.run(start())
    try:
        wait_until(lambda: client.replica)
        yield thread, server, client, secret, address
    finally:
        runner.run(client.stop())
        server.stop()
        thread.stop()
        runner.close()
