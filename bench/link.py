"""What a draft costs a target that waits for it: a round trip to a pool in a process of its own, on a core of its own.

    at once    one draft after the other, caches warm at both ends
    idle       after a pause, as long as a pass
    swept      after reading as many bytes as a target's weights have, as a pass does

The pool drafts behind one sequence that it knows, one token further each time. The target has core 0, the pool core 1.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from statistics import median

import torch

from bench import machine
from bench.arguments import ended, measuring
from bench.pool_process import LinkThread, pool_process
from link.transport import LinkedDraftClient
from protocol.draft import DraftRequest, DraftRow
from protocol.plan import DepthRule
from protocol.request import SamplingParams

RESULT = machine.ROOT / "bench/results/link.json"
TARGET_CORE, POOL_CORE = 0, 1
NAME, PROMPT = "bench", 128
PAUSE_S, WEIGHTS = 0.004, 64 << 20


@dataclass(frozen=True, slots=True)
class Trip:
    """Median milliseconds of a draft of so many tokens, and those that nine of ten do not exceed."""

    after: str
    length: int
    median_ms: float
    most_ms: float


def pauses() -> dict[str, Callable[[], object]]:
    weights = torch.zeros(WEIGHTS // 4)
    return {"at once": lambda: None, "idle": lambda: time.sleep(PAUSE_S), "swept": weights.sum}


class Line:
    """One sequence, drafted for again and again."""

    def __init__(self, client: LinkedDraftClient, depth: int) -> None:
        self._client, self._depth = client, DepthRule((depth,))
        self._rounds = count()
        self._length = 0

    def draft_ms(self, num_new: int, length: int) -> float:
        """Raises RuntimeError where no draft comes."""
        row = DraftRow(1, self._length, (7,) * num_new, length, SamplingParams(0.0))
        request = DraftRequest(NAME, next(self._rounds), self._depth, (row,))
        began = time.perf_counter()
        reply = self._client.draft(request)
        elapsed = time.perf_counter() - began
        if reply is None or len(reply.blocks[0].tokens) != length:
            raise RuntimeError("the pool did not draft; its message is above")
        self._length += num_new
        return 1e3 * elapsed


def trips(line: Line, args: Namespace) -> list[Trip]:
    line.draft_ms(PROMPT, 1)
    taken: dict[tuple[str, int], list[float]] = {}
    each = pauses()
    for _ in range(args.pairs):
        for name, pause in each.items():
            for length in args.lengths:
                pause()
                taken.setdefault((name, length), []).append(line.draft_ms(1, length))
    return [
        Trip(name, length, round(median(times), 3), round(sorted(times)[int(0.9 * len(times))], 3))
        for (name, length), times in sorted(taken.items())
    ]


def table(found: list[Trip]) -> str:
    lines = ["| after | tokens drafted | ms, median | nine of ten within |", "|---|---|---|---|"]
    lines += [f"| {one.after} | {one.length} | {one.median_ms:.2f} | {one.most_ms:.2f} |" for one in found]
    return "\n".join([*lines, "", machine.footer(machine.describe())]) + "\n"


def run(args: Namespace) -> int:
    os.sched_setaffinity(0, [TARGET_CORE])
    threads = LinkThread()
    try:
        with pool_process(args.drafter, [POOL_CORE], 4) as member, threads.client(member, NAME) as client:
            found = trips(Line(client, args.depths[0]), args)
    finally:
        threads.close()
    machine.save(
        args.out or RESULT, {"machine": machine.describe(), "trips": [asdict(one) for one in found]}, table(found)
    )
    sys.stdout.write(table(found))
    return 0


def main() -> int:
    parser = measuring(__doc__, depths=[2], lengths=[1, 4], pairs=150)
    return ended("bench.link", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
