"""A draft replica in a process of its own, behind the real server, and the link to it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench.cells import PAGE
from deployments.profiling import drafter_costs
from drafters.limits import PoolLimits
from drafters.link_profile import served
from drafters.nested import load_nested
from drafters.worker import DraftWorker
from link import loopback
from link.discovery import PoolMember
from link.transport import LinkedDraftClient
from router.costs import ModelKey

STOP_S = 20.0
POSITIONS_PER_ROW = 2048
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """cores: none, and it runs wherever the system puts it.

    measured: by how many sweeps it measures what drafts cost, 0 for not at all.
    """

    drafter: Path
    cores: tuple[int, ...]
    max_rows: int
    dtype: torch.dtype
    measured: int = 0


@contextmanager
def pool_process(place: PoolSettings) -> Iterator[PoolMember]:
    """Yields what the replica says of itself. Raises RuntimeError when it does not start."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(place, theirs))
    process.start()
    theirs.close()
    try:
        yield _told(ours)
    finally:
        ours.close()
        process.join(STOP_S)
        process.kill()


def _told(replica: Connection) -> PoolMember:
    try:
        member: PoolMember = replica.recv()
    except EOFError:
        raise RuntimeError("the draft replica's process did not start; its error stands above") from None
    return member


def serve(place: PoolSettings, owner: Connection) -> None:
    """Until the owner closes its end of the pipe, or is gone."""
    os.setsid()  # an interrupt from the keyboard is for the owner
    if place.cores:
        os.sched_setaffinity(0, place.cores)
    threads = max(len(place.cores), 1)
    torch.set_num_threads(threads)
    positions = place.max_rows * POSITIONS_PER_ROW
    drafter = load_nested(place.drafter, dtype=place.dtype, num_positions=positions, page_size=PAGE)
    key = ModelKey("bench", "", str(place.dtype), threads, "")
    costs = drafter_costs(drafter, key, place.max_rows, place.measured) if place.measured else None
    worker = DraftWorker(drafter, PoolLimits(max_rows=place.max_rows), time.monotonic)
    with served(worker, place.max_rows) as member, suppress(EOFError):
        owner.send(replace(member, costs=costs))
        owner.recv()


class LinkThread:
    """The event loop that a target's clients live on, on a thread of its own, and on whichever core is idle: messages
    are no work of a device.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    @contextmanager
    def client(self, member: PoolMember, incarnation: str, deadline_s: float) -> Iterator[LinkedDraftClient]:
        """A target's own client, linked with this draft replica."""
        client = self._wait(loopback.connect(member, incarnation, deadline_s))
        try:
            yield client
        finally:
            self._wait(client.stop())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # of this thread
        self._loop.run_forever()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(STOP_S)
