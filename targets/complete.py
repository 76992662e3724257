"""Runs a batch of requests on an engine and waits for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun
from targets.engine import Engine


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
