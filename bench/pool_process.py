"""A draft replica in a process of its own, behind the real server, and the link to it.

`python -m bench.pool_process --drafter DIR` answers every line of its input with what it says of itself, as one line of
JSON, and ends with its input, so that it never outlives its owner.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench.cells import PAGE
from bench.machine import ROOT
from cli.arguments import whole
from deployments.process import DTYPES
from deployments.profiling import drafter_costs
from drafters.limits import PoolLimits
from drafters.nested import load_nested
from drafters.worker import DraftWorker
from link.discovery import Need, PoolMember
from link.links import TransportConfig
from link.pool_server import PoolServer
from link.pool_thread import PoolThread, Reply
from link.secret import VARIABLE, Secret
from link.transport import LinkedDraftClient
from protocol.limits import MessageLimits, limits_of
from protocol.stats import PoolStats
from protocol.wire import PoolMessage, TargetMessage
from router.cost_files import dumps_costs, loads_costs
from router.costs import DrafterCosts, ModelKey

STOP_S = 20.0
NAME, LOOPBACK = "pool", "127.0.0.1"
POSITIONS_PER_ROW = 2048
Describe = Callable[[], PoolMember]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """cores: none, and it runs wherever the system puts it. late_ms: that every reply is held back, asleep.

    measured: by how many sweeps it measures what drafts cost, 0 for not at all.
    """

    drafter: Path
    cores: tuple[int, ...] = ()
    max_rows: int = 32
    positions: int = 32 * POSITIONS_PER_ROW
    dtype: torch.dtype = torch.bfloat16
    late_ms: float = 0.0
    measured: int = 0

    def command(self) -> list[str]:
        dtype = next(name for name, one in DTYPES.items() if one == self.dtype)
        options = {"drafter": self.drafter.resolve(), "max-rows": self.max_rows, "positions": self.positions}
        options |= {"dtype": dtype, "late-ms": self.late_ms, "measured": self.measured}
        asked = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "bench.pool_process", *asked, "--cores", *map(str, self.cores)]


@contextmanager
def pool_process(place: PoolSettings) -> Iterator[Describe]:
    """Yields what asks the replica to describe itself. Raises RuntimeError when it does not start."""
    key, pipe = secrets.token_hex(), subprocess.PIPE
    environment = os.environ | {"OMP_NUM_THREADS": str(max(len(place.cores), 1)), VARIABLE: key}
    with subprocess.Popen(
        place.command(), cwd=ROOT, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield lambda: _described(process, Secret(key.encode()))
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _described(process: subprocess.Popen[str], secret: Secret) -> PoolMember:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise RuntimeError("the draft replica's process did not start, or has ended; its error stands above")
    told = json.loads(line)
    costs = told.pop("costs")
    told |= {"exits": tuple(told["exits"]), "stats": PoolStats(**told["stats"]), "secret": secret}
    told |= {"limits": MessageLimits(**told["limits"])}
    return PoolMember(**told, costs=costs and loads_costs(DrafterCosts, costs, "the draft replica's costs"))


class LatePool(PoolThread):
    late_s = 0.0

    def receive(self, message: TargetMessage, reply: Reply) -> None:
        def later(answer: PoolMessage) -> None:
            time.sleep(self.late_s)
            reply(answer)

        super().receive(message, later if self.late_s else reply)


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
        """A target's own; drafts are made by this draft replica."""
        client = self._wait(_connected(member, incarnation, deadline_s))
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


async def _connected(member: PoolMember, incarnation: str, deadline_s: float) -> LinkedDraftClient:
    async def discover() -> Sequence[PoolMember]:
        return [member]

    client = LinkedDraftClient(incarnation, discover, Need("", member.exits), TransportConfig(deadline_s))
    await client.start()
    async with asyncio.timeout(STOP_S):
        while client.replica is None:
            await asyncio.sleep(0.005)
    return client


@contextmanager
def listening(worker: DraftWorker, max_rows: int, secret: Secret, late_ms: float = 0.0) -> Iterator[Describe]:
    """A draft replica in this process: the worker's thread behind its server."""
    thread, told = LatePool(worker, time.monotonic), worker.describe()
    thread.late_s = late_ms / 1e3
    thread.start()
    limits = limits_of(max_rows, told.max_positions)
    server = PoolServer(thread, secret, limits)
    address = server.start(LOOPBACK, (0, 0))
    member = PoolMember(
        address, NAME, told.exits, "", told.max_positions, 0, thread.stats(), limits=limits, secret=secret
    )
    try:
        yield lambda: replace(member, stats=thread.stats())
    finally:
        server.stop()
        thread.stop()


def serve(args: argparse.Namespace) -> None:
    dtype = DTYPES[args.dtype]
    drafter = load_nested(args.drafter, dtype=dtype, num_positions=args.positions, page_size=args.page_size)
    key = ModelKey("bench", "", args.dtype, max(len(args.cores), 1), "")
    costs = dumps_costs(drafter_costs(drafter, key, args.max_rows, args.measured)) if args.measured else None
    worker = DraftWorker(drafter, PoolLimits(max_rows=args.max_rows), time.monotonic)
    with listening(worker, args.max_rows, Secret.of(os.environ), args.late_ms) as describe:
        for _ in sys.stdin:
            fields = asdict(replace(describe(), secret=None)) | {"costs": costs}
            sys.stdout.write(json.dumps(fields) + "\n")
            sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--cores", type=int, nargs="*", default=[])
    parser.add_argument("--max-rows", type=whole(1), default=32)
    parser.add_argument("--positions", type=whole(1), default=32 * POSITIONS_PER_ROW)
    parser.add_argument("--page-size", type=whole(1), default=PAGE)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--late-ms", type=float, default=0.0)
    parser.add_argument("--measured", type=whole(0), default=0)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    torch.set_num_threads(max(len(args.cores), 1))
    serve(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
