"""DraftPool's own engine behind the seam: the plain loop and every fixed depth and length, over the same weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

import torch

from bench.cells import PAGE, Cell, Outcome, Subject, Timed, TokenIds
from bench.peak import PeakMemory
from deployments.local import check_vocabulary, complete, depth_rule
from deployments.profiling import Limits, drafter_costs, target_costs
from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter, load_nested
from drafters.worker import DraftWorker
from protocol.draft import DraftClient, DraftReply, DraftRequest
from protocol.errors import ConfigError
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from router.costs import CostCurves, DrafterCosts, ModelKey
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy
from targets import plain
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target

clock = time.perf_counter
PREFILL_CHUNK = EngineConfig().prefill_chunk
PROFILE_REPEAT = 7


def requests(prompts: Sequence[TokenIds], temperature: float, max_tokens: int) -> list[GenerateRequest]:
    """The seed is the prompt's number; EOS is ignored."""
    return [
        GenerateRequest(str(seed), tuple(prompt), SamplingParams(temperature, seed=seed), StopRules(max_tokens))
        for seed, prompt in enumerate(prompts)
    ]


class DraftPoolEngine:
    name = "draftpool"
    version = metadata.version(name)

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._model: TargetModel | None = None
        self._drafter: NestedDrafter | None = None
        self._worker: DraftWorker | None = None
        self._adaptive: Goodput | None = None
        self._runs = itertools.count()

    @property
    def model(self) -> TargetModel:
        if self._model is None:
            raise RuntimeError("open the engine first")
        return self._model

    @property
    def worker(self) -> DraftWorker:
        if self._worker is None:
            raise ConfigError("there is no drafter to speculate with; give --drafter")
        return self._worker

    @property
    def adaptive(self) -> Goodput:
        """One for all cells, as a target has one for all its batches: what it learns in one it knows in the next."""
        if self._adaptive is None:
            self._adaptive = Goodput(self.curves(), self.choices())
        return self._adaptive

    def open(self) -> None:
        subject = self._subject
        torch.set_num_threads(subject.threads)
        self._model = load_target(subject.target, dtype=subject.dtype, num_positions=subject.positions, page_size=PAGE)
        if subject.drafter is not None:
            check_vocabulary(subject.target, subject.drafter)
            self._drafter = load_nested(
                subject.drafter, dtype=subject.dtype, num_positions=subject.positions, page_size=PAGE
            )
            self._worker = DraftWorker(self._drafter, PoolLimits(max_rows=subject.max_batch), time.monotonic)

    def close(self) -> None:
        self._model = self._drafter = self._worker = self._adaptive = None

    def oracle(self, prompt: TokenIds, temperature: float, seed: int, max_tokens: int) -> tuple[int, ...]:
        """The plain loop's text: one sequence, one token a step."""
        sampling = SamplingParams(temperature, seed=seed)
        made = plain.generate(self.model, GenerateRequest("0", tuple(prompt), sampling, StopRules(max_tokens)))
        return tuple(made.tokens[len(prompt) :])

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> Outcome:
        asked = requests(prompts, cell.temperature, max_tokens)
        log: dict[str, list[tuple[TokenRun, float]]] = {request.request_id: [] for request in asked}
        readings: list[float] = []

        def read() -> float:
            readings.append(clock())
            return readings[-1]

        handed = itertools.count()
        with self._started(cell, len(prompts)) as (engine, client), PeakMemory() as peak:
            start = clock()
            complete(engine, asked, lambda run: log[run.request_id].append((run, readings[next(handed)])), read)
        outputs = tuple(_timed(log[request.request_id], start) for request in asked)
        return Outcome(outputs, peak.mb, client.ms_per_token if client else None)

    @contextmanager
    def _started(self, cell: Cell, num_prompts: int) -> Iterator[tuple[Engine, TimedClient | None]]:
        incarnation = f"bench-{next(self._runs)}"
        client = TimedClient(LocalDraftClient(self.worker, incarnation)) if cell.speculates else None
        config = EngineConfig(max_batch=cell.batch, max_queue=num_prompts, incarnation=incarnation)
        engine = Engine(self.model, self._policy(cell), client, config)
        engine.start()
        try:
            yield engine, client
        finally:
            engine.stop()

    @property
    def exits(self) -> tuple[int, ...]:
        return self.worker.describe().exits

    def choices(self) -> GoodputConfig:
        rules = tuple(depth_rule(self.exits, exit_) for exit_ in self.exits)
        return GoodputConfig(rules, self.exits, max_rows=self._subject.max_batch)

    def curves(self) -> CostCurves:
        """Of the loaded models as they stand."""
        subject = self._subject
        key = ModelKey("bench", "", str(subject.dtype), subject.threads, self.version)
        limits = Limits(subject.max_batch, subject.max_length, PREFILL_CHUNK)
        target = target_costs(self.model, subject.target.name, key, limits, PROFILE_REPEAT)
        return CostCurves(subject.target.name, target, self._drafter_costs(key))

    def _drafter_costs(self, key: ModelKey) -> DrafterCosts:
        if self._drafter is None:
            raise ConfigError("there is no drafter to speculate with; give --drafter")
        return drafter_costs(self._drafter, key, self._subject.max_batch, PROFILE_REPEAT)

    def _policy(self, cell: Cell) -> Policy:
        if not cell.speculates:
            return Off()
        if cell.mode == "goodput":
            self.adaptive.restart()
            return self.adaptive
        return Fixed(depth_rule(self.exits, cell.depth), cell.length)


class TimedClient:
    """Times the rounds in which every sequence has drafted before: the first one waits for the drafter's prefill."""

    def __init__(self, client: DraftClient) -> None:
        self._client = client
        self._seen: set[int] = set()
        self._seconds = 0.0
        self._drafted = 0

    @property
    def ms_per_token(self) -> float | None:
        return 1e3 * self._seconds / self._drafted if self._drafted else None

    def open(self, request: DraftRequest) -> None:
        self._client.open(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        known = self._seen.issuperset(row.sequence_id for row in request.rows)
        start = clock()
        reply = self._client.draft(request)
        if known and reply is not None:
            self._seconds += clock() - start
            self._drafted += sum(len(block.tokens) for block in reply.blocks)
        self._seen.update(row.sequence_id for row in request.rows)
        return reply

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._client.close(sequence_ids)


def _timed(log: Sequence[tuple[TokenRun, float]], start: float) -> Timed:
    """The first run is the prompt's own token; each later one is a round's."""
    stats = log[-1][0].stats
    drafted = stats.drafted if stats else 0
    return Timed(
        token_ids=tuple(token for run, _ in log for token in run.token_ids),
        arrived=tuple(now for run, now in log for _ in run.token_ids),
        started=start,
        verified=tuple(len(run.token_ids) for run, _ in log[1:]) if drafted else (),
        drafted=drafted,
    )
