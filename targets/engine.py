"""One target's engine: a thread that owns the step loop, and a thread-safe way in.

Requests and cancellations wait in an inbox that is emptied between steps, so nothing else ever touches the
scheduler, the ledger or the model. Every request ends with exactly one run that carries a finish reason.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Self

from protocol.draft import DraftClient
from protocol.errors import ConfigError, InvalidRequest, NotReady, QueueFull
from protocol.limits import MAX_ROUNDS
from protocol.logit_rules import check_rules
from protocol.record import RoundRecord
from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun, check_prompt
from protocol.stats import EngineStats
from router.policy import Policy
from targets.admission import Load, Pace, free_in_s, short_in_s, wait_s
from targets.assemble import make_stepper
from targets.model import TargetModel
from targets.scheduler import SchedulerConfig
from targets.sequence import Sequence

OnRun = Callable[[TokenRun], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """max_queue: requests that may wait beyond the batch before more are refused; those whose answer began elsewhere
    have another batch of places. max_wait_s: a request whose first token would take longer is refused; None: none is.
    count_tokens: whether to count how often each token is committed.
    """

    max_batch: int = 16
    max_queue: int = 64
    prefill_chunk: int = 512
    max_model_len: int | None = None
    incarnation: str = "engine"
    max_wait_s: float | None = None
    count_tokens: bool = False

    def __post_init__(self) -> None:
        if min(self.max_batch, self.prefill_chunk) < 1 or self.max_queue < 0:
            raise ConfigError(f"max_batch and prefill_chunk must be at least 1, max_queue at least 0: {self}")


class Engine:
    def __init__(
        self,
        model: TargetModel,
        policy: Policy,
        draft_client: DraftClient | None = None,
        config: EngineConfig | None = None,
        ahead: bool = False,
    ) -> None:
        """ahead: whether drafts may come while the target verifies; needs a client that can."""
        self.config = config or EngineConfig()
        self.max_length = min(model.max_length, self.config.max_model_len or model.max_length)
        self._model = model
        own, limits = self.config, SchedulerConfig(self.config.max_batch, self.config.prefill_chunk)
        self._stepper = make_stepper(model, policy, draft_client, limits, own.incarnation, ahead)
        vocab_size = model.decoder.config.vocab_size if own.count_tokens else 0
        self._token_counts = array("q", bytes(8 * vocab_size))
        self._wake = threading.Condition()  # guards the four below
        self._submitted: deque[tuple[GenerateRequest, OnRun, float]] = deque()  # with the time of the stepper's clock
        self._cancelled: deque[str] = deque()
        self._stopping = False
        self._open: set[str] = set()  # submitted and not finished
        self._live: dict[str, tuple[Sequence, OnRun]] = {}
        self._pace = Pace()
        self._next_id = 0
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends what is left with FinishReason.CLOSED and waits for the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: GenerateRequest, on_run: OnRun) -> None:
        """Runs arrive on the engine's thread; on_run must not block.

        Raises PromptTooLong, InvalidRequest, QueueFull, or NotReady when stopping.
        """
        vocab_size = self._model.decoder.config.vocab_size
        check_prompt(request, self.max_length, vocab_size)
        self._model.constraint(request)  # compiled here, so that the loop does not wait for it
        check_rules(request.rules, vocab_size)
        with self._wake:
            if self._stopping:
                raise NotReady("the engine is stopping")
            if request.request_id in self._open:
                raise InvalidRequest(f"request {request.request_id} is running already; give each its own id")
            if len(self._open) >= self._room(request):
                free_s = free_in_s(self._pace, self._running())
                raise QueueFull(f"{len(self._open)} requests are running or queued", free_s)
            self._check_wait(request)
            self._open.add(request.request_id)
            self._submitted.append((request, on_run, self._stepper.clock()))
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Ends a request with FinishReason.ABORT; one that has finished, or was never known, is ignored."""
        with self._wake:
            self._cancelled.append(request_id)
            self._wake.notify()

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last turned, an idle loop turns once a second; infinite when it has ended."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    @property
    def open_requests(self) -> tuple[str, ...]:
        with self._wake:
            return tuple(self._open)

    def stats(self) -> EngineStats:
        scheduler, ledger, rounds = self._stepper.scheduler, self._model.ledger, self._stepper.rounds
        totals = rounds.totals  # once, so that its counts are of the same rounds
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_pages=ledger.num_free,
            num_pages=ledger.num_pages,
            num_steps=rounds.num_steps,
            num_adopted_tokens=scheduler.num_adopted,
            num_queried_tokens=scheduler.num_queried,
            num_hit_tokens=scheduler.num_hits,
            queue_times=self._stepper.queue_times,
            num_failures=rounds.num_failures,
            **{each.name: getattr(totals, each.name) for each in fields(totals)},
        )

    def last_rounds(self, count: int = MAX_ROUNDS) -> tuple[RoundRecord, ...]:
        """Oldest first."""
        return self._stepper.rounds.last(count)

    def token_counts(self) -> dict[int, int]:
        """How often each token was committed since the start, by its id; empty unless they are counted. No order."""
        return {token: count for token, count in enumerate(self._token_counts) if count}

    def _room(self, request: GenerateRequest) -> int:
        """Requests that may be open beside this one."""
        room = self.config.max_batch + self.config.max_queue
        return room + self.config.max_batch if request.resume_ids else room

    def _check_wait(self, request: GenerateRequest) -> None:
        """Raises QueueFull. One whose answer has begun waits however long it takes."""
        limit = self.config.max_wait_s
        if limit is None or request.resume_ids:
            return
        ahead = [
            _load(one) for one in list(self._stepper.scheduler.waiting) if one.request.priority <= request.priority
        ]
        coming = [one for one, *_ in self._submitted if one.priority <= request.priority]
        ahead += [Load(one.stop.max_tokens, len(one.prompt_ids)) for one in coming]
        room = max(self._stepper.scheduler.room, 1)
        expected_s = wait_s(self._pace, self._running(), ahead, len(request.prompt_ids), room)
        if (short_s := short_in_s(expected_s, limit)) > 0:
            message = f"the first token would take about {expected_s:.1f} s, and {limit:g} s are allowed"
            raise QueueFull(message, short_s)

    def _running(self) -> list[Load]:
        return list(map(_load, list(self._stepper.scheduler.running)))

    def _loop(self) -> None:
        reason = FinishReason.CLOSED
        try:
            while self._take_inbox():
                self._beat = time.monotonic()
                if self._stepper.scheduler.has_work:
                    self._turn()
        except Exception:
            reason = FinishReason.ERROR
            logger.exception("the engine failed; this replica reports itself unhealthy")
        self._shut(reason)

    def _shut(self, reason: FinishReason) -> None:
        """Nothing gets in any more, and nobody is left waiting."""
        with self._wake:
            self._stopping = True
            late, self._submitted = self._submitted, deque()
        for request, on_run, _ in late:
            _told(on_run, TokenRun(request.request_id, len(request.resume_ids), (), reason, SequenceStats()))
        try:
            self._end(self._live, reason)
        except Exception:
            logger.exception("the engine's sequences could not be removed")

    def _turn(self) -> None:
        try:
            runs, record = self._stepper.step()
        except Exception:
            logger.exception("a step of %d sequences failed; they end with an error", len(self._live))
            self._end(self._live, FinishReason.ERROR)
            return
        self._pace = self._pace.after(record)
        for run in runs:
            self._deliver(run)

    def _take_inbox(self) -> bool:
        """Empties the inbox, waiting for something to do when idle. False when the engine is to stop."""
        with self._wake:
            if not (self._stepper.scheduler.has_work or self._submitted or self._cancelled or self._stopping):
                self._wake.wait(timeout=1.0)
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            stopping = self._stopping
        for request, on_run, arrived_s in submitted:
            constraint = self._model.constraint(request)
            sequence = Sequence(self._next_id, request, self.max_length, constraint=constraint, arrived_s=arrived_s)
            self._live[request.request_id] = sequence, on_run
            self._stepper.scheduler.add(sequence)
            self._next_id += 1
        self._end([one for one in dict.fromkeys(cancelled) if one in self._live], FinishReason.ABORT)
        return not stopping

    def _deliver(self, run: TokenRun) -> None:
        sequence, on_run = self._live[run.request_id]
        if self._token_counts:
            for token in run.token_ids:
                self._token_counts[token] += 1
        if run.finish_reason is not None:
            self._forget(sequence)
        if not _told(on_run, run):
            self.cancel(run.request_id)

    def _end(self, request_ids: Iterable[str], reason: FinishReason) -> None:
        """All are told before the first is removed: a removal that fails leaves nobody waiting."""
        ending = [self._live[request_id] for request_id in request_ids]
        for sequence, on_run in ending:
            self._forget(sequence)
            sequence.ended_s = self._stepper.clock()
            _told(on_run, TokenRun(sequence.request.request_id, sequence.num_generated, (), reason, sequence.stats))
        for sequence, _ in ending:
            self._stepper.remove(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if sequence.num_generated:
            self._pace = self._pace.ended(sequence.num_generated, early=sequence.remaining > 0)
        del self._live[sequence.request.request_id]
        with self._wake:
            self._open.discard(sequence.request.request_id)


def _load(sequence: Sequence) -> Load:
    return Load(max(sequence.remaining, 0), max(sequence.prefill_end - sequence.computed, 0))


def _told(on_run: OnRun, run: TokenRun) -> bool:
    """False when the caller's function failed: its request is then cancelled, and the others go on."""
    try:
        on_run(run)
    except Exception:
        logger.exception("the receiver of request %s failed; the request is cancelled", run.request_id)
        return False
    return True
