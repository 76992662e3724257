"""Measures the cost of the link between a target and its draft replica over loopback, with real client and server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from drafters.profile import INCARNATION
from drafters.worker import DraftWorker
from link.discovery import PoolMember
from link.loopback import connect, listening
from link.pool_thread import PoolThread
from link.transport import LinkedDraftClient
from protocol.draft import DraftRequest, DraftRow
from protocol.errors import DraftUnavailable
from protocol.request import GREEDY

DEADLINE_S = 10.0
MAX_ROWS = 64  # rows per message; larger rounds use several


@asynccontextmanager
async def link_timer(worker: DraftWorker) -> AsyncIterator[Callable[[int], float]]:
    """Yields a function from a number of rows to the milliseconds of a round. Do not call it on the event loop.

    The rows name sequences that the worker does not know. It refuses them at once, so only the link is timed.
    """
    with served(worker, MAX_ROWS) as member:
        client = await connect(member, INCARNATION, DEADLINE_S)
        try:
            yield lambda num_rows: timed(client, unknown_rows(member.exits, num_rows))
        finally:
            await client.stop()


@contextmanager
def served(worker: DraftWorker, max_rows: int) -> Iterator[PoolMember]:
    """A draft replica in this process: the worker's thread behind its server. max_rows: of a message."""
    thread, info = PoolThread(worker, time.monotonic), worker.describe()
    with listening(thread, info.exits, info.max_positions, max_rows) as member:
        yield member


def unknown_rows(exits: tuple[int, ...], num_rows: int) -> DraftRequest:
    rows = tuple(DraftRow(name, 1, (0,), 1, GREEDY) for name in range(num_rows))
    return DraftRequest(INCARNATION, 0, exits[0], rows)


def timed(client: LinkedDraftClient, request: DraftRequest) -> float:
    """Milliseconds until the reply. Raises DraftUnavailable if there is none."""
    began = time.perf_counter()
    reply = client.draft(request)
    elapsed = time.perf_counter() - began
    if reply is None:
        raise DraftUnavailable("the link to a draft replica broke while it was measured; run it again")
    return 1e3 * elapsed
