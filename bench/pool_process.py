"""A draft replica in a process of its own, on cores of its own, behind the real server: what overlap is measured with.

python -m bench.pool_process --drafter DIR --cores 1      says where it listens, and ends with its standard input
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
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from bench.cells import PAGE
from bench.slowed import Device, SlowedDrafter
from cli.arguments import whole
from deployments.process import DTYPES
from deployments.profiling import drafter_costs
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter, load_nested
from drafters.worker import DraftWorker
from link.discovery import Need, PoolMember
from link.pool_server import PoolServer
from link.pool_thread import PoolThread
from link.secret import VARIABLE, Secret
from link.transport import LinkedDraftClient, TransportConfig
from protocol.limits import MessageLimits, limits_of
from protocol.stats import PoolStats
from router.cost_files import dumps_costs, loads_costs
from router.costs import DrafterCosts, ModelKey

STOP_S = 10.0
NAME_OF = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

T = TypeVar("T")


@contextmanager
def pool_process(
    drafter: Path,
    cores: Sequence[int],
    max_rows: int,
    token_ms: float = 0.0,
    passes: Path | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    measured: int = 0,
) -> Iterator[PoolMember]:
    """cores: none, and it runs wherever the system puts it. token_ms: what a drafted token takes at least
    (bench/slowed.py). passes: where it leaves what its last passes took. measured: by how many sweeps it finds what
    drafts cost, 0 for none. Raises RuntimeError when it does not start.
    """
    asked = ["--drafter", str(drafter), "--cores", *map(str, cores), "--dtype", NAME_OF[dtype]]
    asked += ["--max-rows", str(max_rows), "--token-ms", str(token_ms)]
    asked += ["--passes", str(passes)] if passes else []
    asked += ["--measured", str(measured)]
    command = [sys.executable, "-m", "bench.pool_process", *asked]
    key = secrets.token_hex()
    environment = os.environ | {"OMP_NUM_THREADS": str(max(len(cores), 1)), VARIABLE: key}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"the draft replica of {drafter} did not start; its message is above")
            told = json.loads(line)
            stats, costs = PoolStats(**told.pop("stats")), told.pop("costs")
            told |= {"limits": MessageLimits(**told["limits"]), "secret": Secret(key.encode())}
            costs = costs and loads_costs(DrafterCosts, costs, "the draft replica's costs")
            yield PoolMember(**told | {"exits": tuple(told["exits"])}, stats=stats, costs=costs)
        finally:
            if process.stdin:
                process.stdin.close()
            process.wait(STOP_S)


class LinkThread:
    """The event loop that a target's clients live on, on a thread of its own, and on whichever core is idle: messages
    are no work of a device.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    @contextmanager
    def client(self, member: PoolMember, incarnation: str, deadline_s: float = 1.0) -> Iterator[LinkedDraftClient]:
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


async def serve(args: argparse.Namespace) -> None:
    positions = args.max_rows * 2 * 1024
    drafter = load_nested(args.drafter, dtype=DTYPES[args.dtype], num_positions=positions, page_size=args.page_size)
    costs = await asyncio.to_thread(measure, drafter, args) if args.measured else None
    if args.token_ms:
        device = Device(f"{args.token_ms:g} ms a drafted token")
        drafter = SlowedDrafter(drafter, device, lambda rows: args.token_ms)
    worker = DraftWorker(drafter, PoolLimits(max_rows=args.max_rows), time.monotonic)
    thread, told = PoolThread(worker, time.monotonic), worker.describe()
    thread.start()
    limits = limits_of(args.max_rows, told.max_positions)
    server = PoolServer(thread, Secret.of(os.environ), limits)
    address = server.start("127.0.0.1", (0, 0))
    member = PoolMember(address, "pool", told.exits, "", told.max_positions, 0, thread.stats(), limits=limits)
    fields = asdict(member) | {"costs": costs}
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    server.stop()
    thread.stop()
    if args.passes:
        left = [[ended, asdict(stats)] for ended, stats in thread.passes()]
        args.passes.write_text(json.dumps(left), encoding="utf-8")


def measure(drafter: NestedDrafter, args: argparse.Namespace) -> str:
    """What drafts cost here, as JSON."""
    key = ModelKey("bench", "", args.dtype, max(len(args.cores), 1), "")
    return dumps_costs(drafter_costs(drafter, key, args.max_rows, args.measured))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--cores", type=int, nargs="*", default=[])
    parser.add_argument("--max-rows", type=whole(1), default=32)
    parser.add_argument("--page-size", type=whole(1), default=PAGE)
    parser.add_argument("--token-ms", type=float, default=0.0)
    parser.add_argument("--passes", type=Path, default=None)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--measured", type=whole(0), default=0)
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    torch.set_num_threads(max(len(args.cores), 1))
    asyncio.run(serve(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
