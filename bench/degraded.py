"""A pool that does not keep up must cost nothing: the same text, at 95 % of plain throughput or more.

A target's engine in this process drafts over a real gRPC stream on a pool in another process:

    plain   no pool
    late    every reply is held back until its deadline is long over (asleep, it takes no CPU)
    small   memory and a row for one sequence of the batch; all others are answered BUSY

A repetition runs the three one after the other, each starting one place later than in the repetition before,
and a ratio compares neighbours in time; the median counts. Every run has a new client, so each pays anew for
learning that the pool is late: the deadlines that it waits for before it stops asking. Throughput is all tokens
over the time from the first submission to the last token. fp32, EOS ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.exactness import TIE, Difference, first_difference, requests, score_gap
from bench.prompts import held_out
from deployments.discovery import Need, PoolMember
from deployments.local import complete
from deployments.pool_server import PoolServer
from deployments.pool_thread import PoolThread
from deployments.transport import GrpcDraftClient, TransportConfig
from drafters.manifest import vocabulary_hash
from drafters.nested import load_nested
from drafters.residents import PoolLimits
from drafters.rounds import Reply
from drafters.worker import DraftWorker
from protocol.draft import DraftReply, DraftRequest
from protocol.plan import DepthRule
from protocol.request import GenerateRequest
from protocol.stats import PoolStats
from router.policy import Fixed, Off
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/degraded.json"
CASES = ("plain", "late", "small")
BAR = 0.95
BATCH, PROMPT_TOKENS, LENGTH, PAGE_SIZE, TEMPERATURE = 8, 128, 4, 64, 0.8
CONNECT_S, STOP_S = 10.0, 20.0


@dataclass(frozen=True, slots=True)
class Run:
    """One case of one repetition. missed: deadlines waited for in vain; busy and drafted: by the pool's count."""

    case: str
    repetition: int
    tokens_per_second: float
    missed: int = 0
    waited_ms: float = 0.0
    busy: int = 0
    drafted: int = 0
    accepted: int = 0
    ties: tuple[Difference, ...] = ()
    faults: tuple[Difference, ...] = ()

    @property
    def is_real(self) -> bool:
        """Whether the pool was what the case says."""
        late = self.missed > 0 and self.drafted > 0 and self.accepted == 0
        return {"plain": self.drafted == 0, "late": late, "small": self.busy > 0}[self.case]


@dataclass(frozen=True, slots=True)
class Row:
    target: str
    case: str
    ratio: float
    ratios: tuple[float, ...]
    runs: tuple[Run, ...]

    @property
    def passes(self) -> bool:
        return self.ratio >= BAR and all(run.is_real and not run.faults for run in self.runs)


class LateWorker(DraftWorker):
    delay_s: float

    def submit(self, request: DraftRequest, reply: Reply) -> None:
        def late(answer: DraftReply) -> None:
            time.sleep(self.delay_s)
            reply(answer)

        super().submit(request, late)


def open_worker(case: str, args: argparse.Namespace) -> DraftWorker:
    """small holds one sequence, late all of them."""
    rows = 1 if case == "small" else BATCH
    positions = rows * positions_per_sequence(args.max_tokens)
    drafter = load_nested(args.drafter, dtype=torch.float32, num_positions=positions, page_size=PAGE_SIZE)
    if case == "small":
        return DraftWorker(drafter, PoolLimits(max_rows=rows))
    worker = LateWorker(drafter, PoolLimits(max_rows=rows))
    worker.delay_s = 2e-3 * args.deadline_ms
    return worker


def positions_per_sequence(max_tokens: int) -> int:
    return -(-(PROMPT_TOKENS + max_tokens + LENGTH) // PAGE_SIZE) * PAGE_SIZE


async def serve_pool(worker: DraftWorker, args: argparse.Namespace) -> None:
    """Describes itself in a line of JSON, and again for every line of input, until that ends."""
    thread = PoolThread(worker, time.monotonic)
    thread.start()
    server = PoolServer(thread)
    try:
        address = await server.start("127.0.0.1", (0, 0))
        told, digest = worker.describe(), vocabulary_hash(args.drafter)
        member = PoolMember(address, args.pool, told.exits, digest, told.max_positions, 0, thread.stats())
        asked = True
        while asked:
            sys.stdout.write(json.dumps(asdict(replace(member, stats=thread.stats()))) + "\n")
            sys.stdout.flush()
            asked = bool(await asyncio.to_thread(sys.stdin.readline))
    finally:
        await server.stop()
        thread.stop()


class Pool:
    """The parent's end of a pool's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.member = self._read()

    def stats(self) -> PoolStats:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read().stats

    def _read(self) -> PoolMember:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the pool's process has ended; its error stands above")
        fields = json.loads(line)
        changes = {"exits": tuple(fields["exits"]), "stats": PoolStats(**fields["stats"])}
        return PoolMember(**fields | changes)


@contextmanager
def pool_process(case: str, args: argparse.Namespace) -> Iterator[Pool]:
    """Ends with its input, so it does not outlive this process however that ends."""
    settings = {"drafter": args.drafter, "max-tokens": args.max_tokens, "deadline-ms": args.deadline_ms}
    command = [sys.executable, "-m", "bench.degraded", "--pool", case, "--threads", "1"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=machine.ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        try:
            yield Pool(process)
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


class WatchedClient(GrpcDraftClient):
    """Notes how long each draft was waited for, and whether in vain."""

    waits: list[tuple[float, bool]]

    def draft(self, request: DraftRequest) -> DraftReply | None:
        began = time.monotonic()
        reply = super().draft(request)
        self.waits.append((time.monotonic() - began, reply is None))
        return reply


@dataclass(frozen=True, slots=True)
class Bench:
    """One target under test. texts: what the plain loop commits, from a first run that is not measured."""

    model: TargetModel
    vocabulary_hash: str
    requests: Sequence[GenerateRequest]
    texts: Sequence[tuple[int, ...]]
    deadline_s: float

    async def plain(self, repetition: int = 0) -> tuple[Run, list[tuple[int, ...]]]:
        engine = Engine(self.model, Off(), None, EngineConfig(max_batch=BATCH))
        speed, texts = await asyncio.to_thread(timed, engine, self.requests)
        return Run("plain", repetition, speed), texts

    async def drafting(self, repetition: int, pool: Pool) -> tuple[Run, list[tuple[int, ...]]]:
        member, before, incarnation = pool.member, pool.stats(), f"target-{time.monotonic_ns()}"
        depth = DepthRule(member.exits[:1])
        need = Need(self.vocabulary_hash, depth.exits)
        client = WatchedClient(incarnation, answer([member]), need, TransportConfig(self.deadline_s))
        client.waits = []
        await connect(client)
        try:
            engine = Engine(self.model, Fixed(depth, LENGTH), client, EngineConfig(BATCH, incarnation=incarnation))
            speed, texts = await asyncio.to_thread(timed, engine, self.requests)
        finally:
            await client.stop()
        after = pool.stats()
        run = Run(
            case=member.incarnation,
            repetition=repetition,
            tokens_per_second=speed,
            missed=sum(in_vain and wait >= self.deadline_s for wait, in_vain in client.waits),
            waited_ms=round(1e3 * sum(wait for wait, _ in client.waits), 1),
            busy=after.num_busy - before.num_busy,
            drafted=after.num_drafted - before.num_drafted,
            accepted=engine.stats().num_accepted,
        )
        return run, texts
