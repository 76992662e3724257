"""A target and its drafter in one process, without Ray. `draftpool generate` and exactness runs use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.manifest import vocabulary_hash
from drafters.nested import load_nested
from drafters.worker import DraftWorker
from model.execution import Execution
from protocol.errors import ConfigError
from protocol.plan import DepthRule, cascade
from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun
from router.policy import Fixed, Off, Policy
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished request. first_s and last_s: clock times of its first and last run, in seconds."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: SequenceStats
    first_s: float
    last_s: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, divided by the time from the first to the last run; 0 for a single run."""
        span = self.last_s - self.first_s
        return (len(self.token_ids) - 1) / span if span > 0 else 0.0


def depth_rule(exits: Sequence[int], depth: int | str | None) -> DepthRule:
    """The rule for an exit, the cascade, or (None) the deepest exit. Raises ConfigError if depth is not an exit."""
    if depth == "cascade":
        return cascade(exits)
    chosen = exits[-1] if depth is None else int(depth)
    if chosen not in exits:
        raise ConfigError(f"depth {chosen} is not an exit of this drafter; choose one of {list(exits)} or cascade")
    return DepthRule((chosen,))


def check_vocabulary(target: Path, drafter: Path) -> None:
    """Raises ConfigError unless both directories hold the same vocabulary."""
    try:
        same = vocabulary_hash(target) == vocabulary_hash(drafter)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not same:
        raise ConfigError(f"{drafter} and {target} have different vocabularies; a drafter must share its target's")


def draft_policy(worker: DraftWorker | None, depth: int | str | None, length: int) -> Policy:
    """A fixed depth and length, or plain decoding without a worker."""
    return Fixed(depth_rule(worker.describe().exits, depth), length) if worker else Off()


def open_engine(model: TargetModel, worker: DraftWorker | None, policy: Policy, config: EngineConfig) -> Engine:
    """Starts an engine. Its drafter, if there is one, runs in the engine's thread."""
    client = LocalDraftClient(worker, config.incarnation) if worker else None
    engine = Engine(model, policy, client, config)
    engine.start()
    return engine


def open_worker(
    directory: Path,
    *,
    dtype: torch.dtype,
    num_positions: int,
    page_size: int,
    max_rows: int,
    execution: Execution = Execution.AUTO,
) -> DraftWorker:
    drafter = load_nested(directory, dtype=dtype, num_positions=num_positions, page_size=page_size, execution=execution)
    return DraftWorker(drafter, PoolLimits(max_rows=max_rows), time.monotonic)


def complete(
    engine: Engine,
    requests: Sequence[GenerateRequest],
    on_run: Callable[[TokenRun], None] = lambda run: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Completion]:
    """Runs all requests at once and waits; returns completions in the order of the requests. Request ids must differ.

    on_run is called with every run, on the caller's thread.
    """
    arrived: SimpleQueue[tuple[TokenRun, float]] = SimpleQueue()
    for request in requests:
        engine.submit(request, lambda run: arrived.put((run, clock())))
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    first: dict[str, float] = {}
    done: dict[str, Completion] = {}
    while len(done) < len(requests):
        run, now = arrived.get()
        on_run(run)
        tokens[run.request_id] += run.token_ids
        first.setdefault(run.request_id, now)
        if run.finish_reason is not None:
            stats = run.stats or SequenceStats()
            ids = tuple(tokens[run.request_id])
            done[run.request_id] = Completion(ids, run.finish_reason, stats, first[run.request_id], now)
    return [done[request.request_id] for request in requests]
