"""A draft replica behind its real server on this machine, and a target's client of it, for profiles and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from link.discovery import Found, Need, PoolMember
from link.links import TransportConfig
from link.pool_server import PoolServer
from link.pool_thread import PoolThread
from link.secret import Secret
from link.transport import LinkedDraftClient
from protocol.limits import limits_of

NAME, HOST = "pool", "127.0.0.1"
CONNECT_S = 20.0


@contextmanager
def listening(thread: PoolThread, exits: tuple[int, ...], max_positions: int, max_rows: int) -> Iterator[PoolMember]:
    """Runs the worker's thread behind a server, and stops both at the end. Yields what the replica says of itself.

    exits, max_positions: of the drafter. max_rows: of a message.
    """
    thread.start()
    limits, secret = limits_of(max_rows, max_positions), Secret.fresh()
    server = PoolServer(thread, secret, limits)
    try:
        address = server.start(HOST, (0, 0))
        yield PoolMember(address, NAME, exits, "", max_positions, thread.stats(), limits=limits, secret=secret)
    finally:
        server.stop()
        thread.stop()


async def connect(member: PoolMember, incarnation: str, deadline_s: float) -> LinkedDraftClient:
    """A client that is linked with this replica and no other; its caller stops it. Raises TimeoutError."""

    async def discover() -> Found:
        return Found((member,))

    client = LinkedDraftClient(incarnation, discover, Need("", member.exits), TransportConfig(deadline_s))
    await client.start()
    try:
        async with asyncio.timeout(CONNECT_S):
            while client.replica is None:
                await asyncio.sleep(0.005)
    except TimeoutError:
        await client.stop()
        raise
    return client
