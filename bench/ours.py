"""Our own engine behind the seam: the plain loop, every fixed depth and length, and the router's policies, over the
same weights.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib import metadata
from typing import Any

import torch

from bench.cells import APART, PAGE, PLAIN, Cell, CellOutcome, Subject, Timed, TokenIds
from bench.policies import ADAPTIVE, GOODPUT, RoundRecorder, adaptive, draft_ms_per_token
from deployments.config import TargetConfig
from deployments.local import known_depth, open_own
from deployments.placement import without_link
from deployments.profiling import drafter_costs, own_drafter_costs, target_costs
from deployments.progress import loading
from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter, load_nested
from drafters.translated import reached
from drafters.translation import Translation, translation_between
from drafters.worker import DraftWorker
from model.execution import Execution
from model.load import WeightFormat
from protocol.draft import DraftClient
from protocol.errors import ConfigError
from protocol.plan import Mode
from protocol.record import RoundRecord
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from router.costs import CostCurves, DrafterCosts, ModelKey
from router.policy import Fixed, Off, Policy
from targets import plain
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from targets.own_client import OwnDraftClient

PROFILE_REPEAT = 7
MAX_ROUNDS = 1 << 14  # of a cell
MAX_QUEUE = 4096  # prompts of a run that wait


def requests(prompts: Sequence[TokenIds], temperature: float, max_tokens: int) -> list[GenerateRequest]:
    """The seed is the prompt's number; EOS is ignored."""
    return [
        GenerateRequest(str(seed), tuple(prompt), SamplingParams(temperature, seed=seed), StopRules(max_tokens))
        for seed, prompt in enumerate(prompts)
    ]


class DraftPoolEngine:
    """rounds: by cell, the last ones of all its runs."""

    name = "draftpool"
    version = metadata.version(name)
    shares_noise = True

    def __init__(self, subject: Subject) -> None:
        self.rounds: dict[Cell, deque[RoundRecord]] = {}
        self._subject = subject
        self._model: TargetModel | None = None
        self._nested: tuple[NestedDrafter, DraftWorker] | None = None
        self._own: OwnDraftClient | None = None
        self._translation: Translation | None = None
        self._curves: CostCurves | None = None
        self._adaptive: dict[str, Policy] = {}
        self._stack = ExitStack()
        self._engines: dict[Cell, tuple[Engine, RoundRecorder]] = {}

    @property
    def model(self) -> TargetModel:
        if self._model is None:
            raise RuntimeError("open the engine first")
        return self._model

    def open(self) -> None:
        subject = self._subject
        torch.set_num_threads(subject.threads)
        options: dict[str, Any] = {"dtype": subject.dtype, "num_positions": subject.positions, "page_size": PAGE}
        with loading(subject.target) as progress:
            self._model = load_target(subject.target, weights=subject.weights, progress=progress, **options)
        if subject.drafter is None:
            return
        self._own = open_own(self._model, subject.target, subject.drafter, Execution.AUTO, WeightFormat.STORED)
        if self._own is None:
            self._translation = translation_between(subject.target, subject.drafter)
            nested = load_nested(subject.drafter, **options)
            self._nested = nested, DraftWorker(nested, PoolLimits(max_rows=subject.max_batch), time.monotonic)

    def close(self) -> None:
        self._stack.close()
        self._engines.clear()
        self._model = self._nested = self._own = None

    def oracle(self, prompt: TokenIds, temperature: float, seed: int, max_tokens: int) -> tuple[int, ...]:
        """The plain loop's text: one sequence, one token a step."""
        sampling = SamplingParams(temperature, seed=seed)
        text = plain.generate(self.model, GenerateRequest("0", tuple(prompt), sampling, StopRules(max_tokens)))
        return tuple(text.tokens[len(prompt) :])

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        asked = requests(prompts, cell.temperature, max_tokens)
        log: dict[str, list[tuple[TokenRun, float]]] = {request.request_id: [] for request in asked}
        readings: list[float] = []

        def read() -> float:
            readings.append(time.perf_counter())
            return readings[-1]

        engine, recorder = self._engine(cell)
        handed = itertools.count()
        recorder.rounds.clear()
        self.model.ledger.forget()  # every run reads its prompts
        start = time.perf_counter()
        complete(engine, asked, lambda run: log[run.request_id].append((run, readings[next(handed)])), read)
        outputs = tuple(_timed(log[request.request_id], start) for request in asked)
        self.rounds.setdefault(cell, deque(maxlen=MAX_ROUNDS)).extend(recorder.rounds)
        return CellOutcome(outputs, draft_ms_per_token(recorder.rounds))

    def _engine(self, cell: Cell) -> tuple[Engine, RoundRecorder]:
        """One for all runs of a cell, as a server has it: what it learns in one it knows in the next."""
        if cell not in self._engines:
            recorder = RoundRecorder(self._policy(cell))
            config = EngineConfig(cell.batch, MAX_QUEUE, incarnation=f"bench-{len(self._engines)}")
            engine = self._stack.enter_context(self._started(cell, recorder, config))
            self._engines[cell] = engine, recorder
        return self._engines[cell]

    def _started(self, cell: Cell, policy: Policy, config: EngineConfig) -> AbstractContextManager[Engine]:
        return Engine(self.model, policy, self._client(config) if cell.speculates else None, config)

    def _client(self, config: EngineConfig) -> DraftClient:
        if self._own is not None:
            return self._own
        _, worker = self._loaded()
        return reached(LocalDraftClient(worker, config.incarnation), self._translation)

    def _policy(self, cell: Cell) -> Policy:
        if cell.mode == PLAIN:
            return Off()
        if cell.length:
            mode = APART[cell.mode][-1] if cell.mode in APART else Mode.IN_TURN
            return Fixed(known_depth(self.exits, cell.depth), cell.length, mode)
        return self._choosing(cell.mode if cell.mode in ADAPTIVE else GOODPUT)

    def _choosing(self, name: str) -> Policy:
        """One for all cells, as a target has one for all its batches: what it learns in one it knows in the next."""
        if name not in self._adaptive:
            self._curves = self._curves or self._measured()
            self._adaptive[name] = adaptive(name, self._curves, self.exits, self._subject.max_batch)
        return self._adaptive[name]

    @property
    def exits(self) -> tuple[int, ...]:
        return self._own.exits if self._own is not None else self._loaded()[0].exits

    def _loaded(self) -> tuple[NestedDrafter, DraftWorker]:
        if self._nested is None:
            raise ConfigError("there is no drafter to speculate with; give --drafter")
        return self._nested

    def _measured(self) -> CostCurves:
        """Of the loaded models as they stand."""
        subject = self._subject
        key = ModelKey("bench", "", str(subject.dtype), subject.threads, self.version)
        name, path = subject.target.name, str(subject.target)
        config = TargetConfig(name=name, path=path, max_batch=subject.max_batch, max_model_len=subject.max_length)
        target = target_costs(self.model, config, key, PROFILE_REPEAT)
        return CostCurves(subject.target.name, target, self._drafter_costs(key))

    def _drafter_costs(self, key: ModelKey) -> DrafterCosts:
        if self._own is not None:
            return own_drafter_costs(self.model, self._own, key, self._subject.max_batch, PROFILE_REPEAT)
        return without_link(drafter_costs(self._loaded()[0], key, self._subject.max_batch, PROFILE_REPEAT))


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
