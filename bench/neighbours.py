"""Question: how much of plain decoding is left beside processes that keep every core busy? One after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from bench import machine
from bench.arguments import add_target, add_threads, plain_parser
from bench.stats import Ratio, paired_ratio
from cli.arguments import whole
from model.cores import usable_cores
from protocol.request import GREEDY
from targets.model import ForwardRow, TargetModel, load_target

BUSY = "while True: pass"
SETTLE_S = 0.3  # in which the neighbours begin or end
CONTEXT = 64
SEQUENCE = -1


@contextmanager
def neighbours(count: int) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Busy processes, which stand still until they are told to go on."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        send(busy, signal.SIGSTOP)
        yield busy
    finally:
        for process in busy:
            process.kill()
            process.wait()


def send(processes: Sequence[subprocess.Popen[bytes]], what: signal.Signals) -> None:
    for process in processes:
        os.kill(process.pid, what)
    time.sleep(SETTLE_S)


def rate(model: TargetModel, seconds: float) -> float:
    """Tokens per second of plain steps over one sequence."""
    steps, start = 0, time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        model.pick([ForwardRow(SEQUENCE, CONTEXT, [1], num_logits=1)], [GREEDY], [CONTEXT + 1])
        steps += 1
    return steps / now


def measure(model: TargetModel, count: int, pairs: int, seconds: float) -> tuple[list[float], list[float]]:
    """Rates alone and beside neighbours, of every repetition."""
    alone, beside = [], []
    model.ledger.open(SEQUENCE)
    assert model.ledger.reserve(SEQUENCE, CONTEXT + 1)
    rate(model, seconds)
    with neighbours(count) as busy:
        for _ in range(pairs):
            alone.append(rate(model, seconds))
            send(busy, signal.SIGCONT)
            beside.append(rate(model, seconds))
            send(busy, signal.SIGSTOP)
    return alone, beside


def table(alone: Sequence[float], beside: Sequence[float], ratio: Ratio, count: int, place: Mapping[str, Any]) -> str:
    rows = [
        (0, f"{median(alone):.0f}", 1, ""),
        (count, f"{median(beside):.0f}", f"{ratio.median:.2f}", ratio.interval()),
    ]
    header = ("busy neighbours", "tokens/s", "of alone", "90 % interval")
    return machine.markdown(header, rows, machine.footer(place))


def main() -> int:
    parser = plain_parser(__doc__, "neighbours.json")
    add_target(parser)
    add_threads(parser)
    parser.add_argument("--neighbours", type=whole(1), default=usable_cores(), help="default: one a core")
    parser.add_argument("--pairs", type=whole(2), default=15, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_target(args.target, dtype=torch.bfloat16, num_positions=2 * CONTEXT, page_size=16)
    alone, beside = measure(model, args.neighbours, args.pairs, args.seconds)
    place, ratio = machine.describe(), paired_ratio(beside, alone)
    report = {"machine": place, "alone": alone, "beside": beside, "ratio": ratio.median}
    machine.publish(args.out, report, table(alone, beside, ratio, args.neighbours, place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
