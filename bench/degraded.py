"""A pool that does not keep up must cost nothing: the same text, at 95 % of plain throughput or more.

A target's engine in this process drafts over a real gRPC stream on a pool in another process:

    plain   no pool
    late    every reply is held back until its deadline is long over (asleep, so it takes no CPU)
    small   memory and a row for one sequence of the batch; the others are answered BUSY

Each repetition runs the three one after the other, beginning with another one each time; a ratio compares runs of
one repetition, and the median counts. Every run has a new client, so each pays anew for the deadlines that are
waited for before a late pool is left alone. Throughput is all tokens over the time from the submission to the last
one. fp32, EOS ignored. `python -m bench.degraded --pool CASE` is such a pool.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.differences import TIE, Difference, first_difference, requests, score_gap
from bench.prompts import held_out
from deployments.local import complete, open_worker
from drafters.manifest import vocabulary_hash
from link.discovery import Discover, Need, PoolMember
from link.pool_server import PoolServer
from link.pool_thread import Fail, PoolThread, Reply
from link.secret import VARIABLE, Secret
from link.transport import LinkedDraftClient, TransportConfig
from protocol.draft import DraftReply, DraftRequest
from protocol.limits import MessageLimits, limits_of
from protocol.plan import DepthRule
from protocol.request import GenerateRequest
from protocol.stats import PoolStats
from protocol.wire import PoolMessage, TargetMessage
from router.policy import Fixed, Off
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/degraded.json"
CASES = ("plain", "late", "small")
BAR = 0.95
BATCH, PROMPT_TOKENS, LENGTH, TEMPERATURE, PAGE_SIZE = 8, 128, 4, 0.8, 64
CONNECT_S, STOP_S = 10.0, 20.0

Texts = list[tuple[int, ...]]
Describe = Callable[[], PoolMember]


@dataclass(frozen=True, slots=True)
class Run:
    """missed: deadlines waited for in vain; waited_ms: for all drafts; busy and drafted: as the pool counts them."""

    case: str
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
        """Whether the pool was what its name says: a late one drafts and nothing of it is used, a small one refuses."""
        late = self.missed > 0 and self.drafted > 0 and self.accepted == 0
        return {"plain": self.drafted == 0, "late": late, "small": self.busy > 0}[self.case]


@dataclass(frozen=True, slots=True)
class Row:
    target: str
    case: str
    passed: bool
    ratio: float
    ratios: list[float]
    runs: list[Run]


@dataclass(frozen=True, slots=True)
class Subject:
    model: TargetModel
    vocabulary_hash: str
    requests: list[GenerateRequest]
    deadline_s: float


class LatePool(PoolThread):
    delay_s = 0.0

    def receive(self, message: TargetMessage, reply: Reply, fail: Fail | None = None) -> None:
        def late(answer: PoolMessage) -> None:
            time.sleep(self.delay_s)
            reply(answer)

        super().receive(message, late, fail)


class WatchedClient(LinkedDraftClient):
    """Counts the deadlines that it waits for in vain."""

    missed = 0
    waited_s = 0.0

    def draft(self, request: DraftRequest) -> DraftReply | None:
        began = time.monotonic()
        reply = super().draft(request)
        waited_s = time.monotonic() - began
        self.waited_s += waited_s
        self.missed += reply is None and waited_s >= self._config.deadline_s
        return reply


def kv_positions(sequences: int, max_tokens: int) -> int:
    """So many sequences to their ends, the part of a page that is lost to each included."""
    return sequences * (PROMPT_TOKENS + max_tokens + PAGE_SIZE)


async def serve_pool(args: argparse.Namespace) -> None:
    """Describes itself in a line of JSON for every line of input, and ends with the input."""
    rows = 1 if args.pool == "small" else BATCH
    worker = open_worker(
        args.drafter,
        dtype=torch.float32,
        num_positions=kv_positions(rows, args.max_tokens),
        page_size=PAGE_SIZE,
        max_rows=rows,
    )
    told, digest = worker.describe(), vocabulary_hash(args.drafter)
    thread = LatePool(worker, time.monotonic)
    thread.delay_s = 2e-3 * args.deadline_ms if args.pool == "late" else 0.0
    thread.start()
    limits = limits_of(rows, told.max_positions)
    server = PoolServer(thread, Secret.of(os.environ), limits)
    try:
        address = server.start("127.0.0.1", (0, 0))
        while await asyncio.to_thread(sys.stdin.readline):
            stats = thread.stats()
            member = PoolMember(address, args.pool, told.exits, digest, told.max_positions, 0, stats, limits=limits)
            sys.stdout.write(json.dumps(asdict(member)) + "\n")
            sys.stdout.flush()
    finally:
        server.stop()
        thread.stop()


@contextmanager
def pool_process(case: str, args: argparse.Namespace) -> Iterator[Describe]:
    """A pool whose stdin is a pipe from here, so that it never outlives this process."""
    command = [sys.executable, "-m", "bench.degraded", "--pool", case, "--drafter", str(args.drafter.resolve())]
    command += ["--max-tokens", str(args.max_tokens), "--deadline-ms", str(args.deadline_ms)]
    pipe, key = subprocess.PIPE, secrets.token_hex()
    environment = os.environ | {VARIABLE: key}
    with subprocess.Popen(
        command,
        cwd=machine.ROOT,
        stdin=pipe,
        stdout=pipe,
        text=True,
        start_new_session=True,
        env=environment,
    ) as process:
        try:
            yield lambda: describe(process, Secret(key.encode()))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def describe(process: subprocess.Popen[str], secret: Secret) -> PoolMember:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the pool's process has ended; its error stands above")
    told = json.loads(line)
    stats, limits = PoolStats(**told["stats"]), MessageLimits(**told["limits"])
    return PoolMember(**told | {"exits": tuple(told["exits"]), "stats": stats, "limits": limits, "secret": secret})


def timed(engine: Engine, wanted: Sequence[GenerateRequest]) -> tuple[float, Texts]:
    """Tokens per second, and the tokens of every request."""
    engine.start()
    began = time.perf_counter()
    try:
        texts = [completion.token_ids for completion in complete(engine, wanted)]
        seconds = time.perf_counter() - began
    finally:
        engine.stop()
    return round(sum(map(len, texts)) / seconds, 2), texts


async def run_plain(subject: Subject) -> tuple[Run, Texts]:
    engine = Engine(subject.model, Off(), None, EngineConfig(BATCH))
    speed, texts = await asyncio.to_thread(timed, engine, subject.requests)
    return Run("plain", speed), texts


async def run_drafting(subject: Subject, describe: Describe) -> tuple[Run, Texts]:
    before = describe()
    depth, incarnation = DepthRule(before.exits[:1]), f"target-{time.monotonic_ns()}"
    client = WatchedClient(
        incarnation, only(before), Need(subject.vocabulary_hash, depth.exits), TransportConfig(subject.deadline_s)
    )
    engine = Engine(subject.model, Fixed(depth, LENGTH), client, EngineConfig(BATCH, incarnation=incarnation))
    await client.start()
    try:
        async with asyncio.timeout(CONNECT_S):
            while client.replica is None:
                await asyncio.sleep(0.01)
        speed, texts = await asyncio.to_thread(timed, engine, subject.requests)
    finally:
        await client.stop()
    after = describe()
    run = Run(
        case=before.incarnation,
        tokens_per_second=speed,
        missed=client.missed,
        waited_ms=round(1e3 * client.waited_s, 1),
        busy=after.stats.num_busy - before.stats.num_busy,
        drafted=after.stats.num_drafted - before.stats.num_drafted,
        accepted=engine.stats().num_accepted,
    )
    return run, texts


def only(member: PoolMember) -> Discover:
    async def discover() -> Sequence[PoolMember]:
        return [member]

    return discover


def compared(subject: Subject, run: Run, texts: Texts, plain: Texts) -> Run:
    differences = [
        Difference(request.request_id, index, score_gap(subject.model, request, expected[:index]))
        for request, text, expected in zip(subject.requests, texts, plain, strict=True)
        if (index := first_difference(expected, text)) is not None
    ]
    ties = tuple(difference for difference in differences if difference.gap <= TIE)
    return replace(run, ties=ties, faults=tuple(difference for difference in differences if difference.gap > TIE))


async def measure(target: Path, pools: dict[str, Describe], args: argparse.Namespace) -> list[Row]:
    prompts = held_out(AutoTokenizer.from_pretrained(target), BATCH, PROMPT_TOKENS)
    num_positions = kv_positions(BATCH, args.max_tokens)
    model = load_target(target, dtype=torch.float32, num_positions=num_positions, page_size=PAGE_SIZE)
    wanted = requests(prompts, TEMPERATURE, args.max_tokens)
    subject = Subject(model, vocabulary_hash(target), wanted, args.deadline_ms / 1e3)
    _, plain = await run_plain(subject)  # the text to compare with; warms up, and is not measured
    runs: dict[str, list[Run]] = {case: [] for case in CASES}
    for number in tqdm(range(args.repeat * len(CASES)), target.name, unit="run"):
        case = CASES[(number + number // len(CASES)) % len(CASES)]
        run, texts = await (run_drafting(subject, pools[case]) if case in pools else run_plain(subject))
        runs[case].append(compared(subject, run, texts, plain))
    return [_row(target.name, runs[case], runs["plain"]) for case in CASES]


def _row(target: str, runs: list[Run], plain: list[Run]) -> Row:
    ratios = [round(run.tokens_per_second / base.tokens_per_second, 3) for run, base in zip(runs, plain, strict=True)]
    passed = median(ratios) >= BAR and all(run.is_real and not run.faults for run in runs)
    return Row(target, runs[0].case, passed, round(median(ratios), 3), ratios, runs)


def table(rows: Sequence[Row]) -> str:
    lines = ["target   case   tokens/s  against plain  missed  busy  text    verdict  each repetition"]
    for row in rows:
        missed, busy = (sum(getattr(run, name) for run in row.runs) for name in ("missed", "busy"))
        ties, faults = (sum(len(getattr(run, name)) for run in row.runs) for name in ("ties", "faults"))
        text = f"{faults} differ" if faults else f"{ties} ties" if ties else "same"
        speed = median(run.tokens_per_second for run in row.runs)
        verdict = "ok" if row.passed else "FAILED"
        lines.append(
            f"{row.target:8} {row.case:6} {speed:8.1f} {row.ratio:13.3f}x {missed:7} {busy:5}  {text:7} {verdict:8} "
            + " ".join(f"{ratio:.3f}" for ratio in row.ratios)
        )
    return "\n".join(lines) + "\n"


async def measure_all(args: argparse.Namespace) -> list[Row]:
    with ExitStack() as stack:
        pools = {case: stack.enter_context(pool_process(case, args)) for case in CASES[1:]}
        return [row for target in args.target for row in await measure(target, pools, args)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, nargs="+", default=[MODELS / "large", MODELS / "small"])
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--deadline-ms", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--pool", choices=CASES[1:], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.pool:
        asyncio.run(serve_pool(args))
        return 0
    rows = asyncio.run(measure_all(args))
    settings = {"batch": BATCH, "prompt_tokens": PROMPT_TOKENS, "length": LENGTH, "temperature": TEMPERATURE}
    settings |= {"drafter": args.drafter.name, "max_tokens": args.max_tokens, "deadline_ms": args.deadline_ms}
    report = {"machine": machine.describe(), **settings, "rows": [asdict(row) for row in rows]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(table(rows))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
