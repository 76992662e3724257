"""What passes cost where target and pool work at the same time, each on a core of its own, and where they take turns.

    alone       the target while the pool rests, the pool while the target rests, and a round over the real link
    contended   the target while the pool drafts, the pool while the target verifies

Cores share caches, memory and maybe arithmetic, so what overlaps is priced by what was measured overlapping.

python -m bench.contended --drafter DIR --cores 1      drafts there until its standard input ends; its costs as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO

import torch

from bench.cells import PAGE, Subject
from bench.ours import PREFILL_CHUNK
from bench.pool_process import NAME_OF, STOP_S, LinkThread, pool_process
from cli.arguments import whole
from deployments.process import DTYPES
from deployments.profile_link import refused, timed
from deployments.profiling import TargetLimits, drafter_costs, target_costs
from drafters.nested import load_nested
from drafters.profile import INCARNATION, LENGTHS, DraftRound, draft_timer
from link.discovery import PoolMember
from router.cost_files import dumps_costs, loads_costs
from router.costs import ROW_AXES, CostCurves, Curve, DrafterCosts, ModelKey, TargetCosts, row_points
from targets.model import TargetModel
from targets.profile import Pass, pass_timer

CONTEXT, WIDTH = 256, 4  # of the passes that only keep a core busy
LINK_ROUNDS, BUSY_ROUNDS = 60, 20


@dataclass(frozen=True, slots=True)
class Curves:
    alone: CostCurves
    contended: CostCurves

    @property
    def target_beside(self) -> float:
        """How many times longer the target's passes take while the pool works."""
        return longer(self.contended.target.verify, self.alone.target.verify)

    @property
    def pool_beside(self) -> float:
        assert self.contended.drafter is not None, "there is a pool"
        assert self.alone.drafter is not None, "there is a pool"
        return longer(self.contended.drafter.draft, self.alone.drafter.draft)


def longer(contended: Curve, alone: Curve) -> float:
    """The median, for single points are noisy; never less than 1."""
    return max(median(ms / own for ms, own in zip(contended.ms, alone.ms, strict=True)), 1.0)


def measured(
    model: TargetModel, subject: Subject, link: LinkThread, cores: Sequence[int], num_rows: int, repeat: int
) -> Curves:
    """cores: of the pool; this process keeps to others. num_rows: of the pool's largest pass. Raises RuntimeError when
    the pool does not start.
    """
    assert subject.drafter is not None, "there is a pool"
    name, drafter, dtype = subject.target.name, subject.drafter, subject.dtype
    with pool_process(drafter, cores, num_rows, dtype=dtype, measured=repeat) as member:
        assert member.costs is not None, "it was asked to measure itself"
        way, target = link_curve(link, member, model, num_rows), costs_of(model, subject, repeat)
        alone = CostCurves(name, target, replace(member.costs, link=way))
    with neighbour(subject, cores, num_rows, repeat) as costs:
        target = costs_of(model, subject, repeat)
        with busy_target(model) as run:
            while not costs.done():
                run()
        return Curves(alone, CostCurves(name, target, replace(costs.result(), link=way)))


def costs_of(model: TargetModel, subject: Subject, repeat: int) -> TargetCosts:
    key = ModelKey("bench", "", str(subject.dtype), subject.threads, "")
    limits = TargetLimits(subject.max_batch, subject.max_length, PREFILL_CHUNK)
    return target_costs(model, subject.target.name, key, limits, repeat)


@contextmanager
def busy_target(model: TargetModel) -> Iterator[Callable[[], float]]:
    """Passes as decoding has them."""
    with pass_timer(model, 1, CONTEXT + WIDTH) as time_pass:
        yield lambda: time_pass(Pass(1, WIDTH, CONTEXT, num_logits=WIDTH))


def link_curve(link: LinkThread, member: PoolMember, model: TargetModel, num_rows: int) -> Curve:
    """Rounds that the pool refuses at once, each behind a pass: whoever takes part has slept meanwhile."""
    points, times = row_points(num_rows), []
    with link.client(member, INCARNATION) as client, busy_target(model) as run:
        for rows in points:
            request, taken = refused(member.exits, rows), []
            for _ in range(LINK_ROUNDS):
                run()
                taken.append(timed(client, request))
            times.append(median(taken))
    return Curve(ROW_AXES, (tuple(map(float, points)),), tuple(times))


@contextmanager
def neighbour(subject: Subject, cores: Sequence[int], num_rows: int, repeat: int) -> Iterator[Future[DrafterCosts]]:
    """A process that drafts from now on, until this is left; and what drafts cost it, once it knows."""
    asked = ["--drafter", str(subject.drafter), "--cores", *map(str, cores)]
    asked += ["--max-rows", str(num_rows), "--repeat", str(repeat), "--dtype", NAME_OF[subject.dtype]]
    command = [sys.executable, "-m", "bench.contended", *asked]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores))}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process,
        ThreadPoolExecutor(1) as thread,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError(f"{subject.drafter} does not draft beside the target; its message is above")
            yield thread.submit(_read, process.stdout)
        finally:
            process.stdin.close()
            process.wait(STOP_S)


def _read(lines: IO[str]) -> DrafterCosts:
    return loads_costs(DrafterCosts, json.loads(lines.readline()), "the neighbour's costs")


def draft(args: argparse.Namespace) -> None:
    positions = args.max_rows * 2 * 1024
    drafter = load_nested(args.drafter, dtype=DTYPES[args.dtype], num_positions=positions, page_size=PAGE)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    with draft_timer(drafter, args.max_rows) as time_round:
        _say("ready")
        for _ in range(BUSY_ROUNDS):
            time_round(DraftRound(args.max_rows, drafter.exits[0], 1, LENGTHS[-1]))
    key = ModelKey("bench", "", args.dtype, len(args.cores), "")
    _say(dumps_costs(drafter_costs(drafter, key, args.max_rows, args.repeat)))
    with draft_timer(drafter, args.max_rows) as time_round:
        while not ended.is_set():
            time_round(DraftRound(args.max_rows, drafter.exits[0], 1, LENGTHS[-1]))


def _say(text: str) -> None:
    sys.stdout.write(json.dumps(text) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--cores", type=int, nargs="+", required=True)
    parser.add_argument("--max-rows", type=whole(1), default=8)
    parser.add_argument("--repeat", type=whole(1), default=7)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    args = parser.parse_args()
    os.sched_setaffinity(0, args.cores)
    torch.set_num_threads(len(args.cores))
    draft(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
