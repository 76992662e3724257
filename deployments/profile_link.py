"""Measures the cost of the link between a target and its draft replica over loopback, with real client and server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from drafters.profile import GREEDY, INCARNATION
from drafters.worker import DraftWorker
from link.discovery import Need, PoolMember
from link.links import TransportConfig
from link.pool_server import PoolServer
from link.pool_thread import PoolThread
from link.secret import Secret
from link.transport import LinkedDraftClient
from protocol.draft import DraftRequest, DraftRow
from protocol.errors import DraftUnavailable
from protocol.limits import limits_of
from protocol.plan import DepthRule

CONNECT_S, DEADLINE_S = 10.0, 10.0
MAX_ROWS = 64  # rows per message; larger rounds use several


@asynccontextmanager
async def link_timer(worker: DraftWorker) -> AsyncIterator[Callable[[int], float]]:
    """Yields a function from a number of rows to the milliseconds of a round. Do not call it on the event loop.

    The rows name sequences that the worker does not know. It refuses them at once, so only the link is timed.
    """
    thread, info = PoolThread(worker, time.monotonic), worker.describe()
    thread.start()
    secret, limits = Secret.fresh(), limits_of(MAX_ROWS, info.max_positions)
    server = PoolServer(thread, secret, limits)
    try:
        address = server.start("127.0.0.1", (0, 0))
        member = PoolMember(
            address, "pool", info.exits, "", info.max_positions, 0, thread.stats(), limits=limits, secret=secret
        )
        async with connected(member) as client:
            yield lambda num_rows: timed(client, refused(info.exits, num_rows))
    finally:
        server.stop()
        thread.stop()


@asynccontextmanager
async def connected(member: PoolMember) -> AsyncIterator[LinkedDraftClient]:
    async def discover() -> Sequence[PoolMember]:
        return [member]

    client = LinkedDraftClient(INCARNATION, discover, Need("", member.exits), TransportConfig(DEADLINE_S))
    await client.start()
    try:
        async with asyncio.timeout(CONNECT_S):
            while client.replica is None:
                await asyncio.sleep(0.01)
        yield client
    finally:
        await client.stop()


def refused(exits: tuple[int, ...], num_rows: int) -> DraftRequest:
    rows = tuple(DraftRow(name, 1, (0,), 1, GREEDY) for name in range(num_rows))
    return DraftRequest(INCARNATION, 0, DepthRule(exits[:1]), rows)


def timed(client: LinkedDraftClient, request: DraftRequest) -> float:
    began = time.perf_counter()
    reply = client.draft(request)
    elapsed = time.perf_counter() - began
    if reply is None:
        raise DraftUnavailable("the link to a draft replica broke while it was measured; run it again")
    return 1e3 * elapsed
