"""One target's engine: a thread that owns the step loop, and a thread-safe way in.

Requests and cancellations wait in an inbox that is emptied between steps, so nothing else ever touches the
scheduler, the ledger or the model. Every request ends with exactly one run that carries a finish reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from protocol.branch import MirrorClient
from protocol.draft import DraftClient
from protocol.errors import ConfigError, InvalidRequest, NotReady, PromptTooLong, QueueFull
from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun
from protocol.stats import EngineStats, StepStats
from router.policy import Policy
from targets.drafting import Drafting
from targets.fence import Fences
from targets.guarded_client import GuardedDraftClient, GuardedMirrorClient
from targets.guarded_policy import GuardedPolicy
from targets.mirror import MirrorConfig, MirrorStepper
from targets.model import TargetModel
from targets.scheduler import Scheduler, SchedulerConfig
from targets.sequence import Sequence
from targets.step import Stepper
from targets.timeline import Timeline

OnRun = Callable[[TokenRun], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """max_queue: requests that may wait beyond the batch before more are refused."""

    max_batch: int = 16
    max_queue: int = 64
    prefill_chunk: int = 512
    max_model_len: int | None = None
    incarnation: str = "engine"

    def __post_init__(self) -> None:
        if min(self.max_batch, self.prefill_chunk) < 1 or self.max_queue < 0:
            raise ConfigError(f"max_batch and prefill_chunk must be at least 1, max_queue at least 0: {self}")


@dataclass(slots=True)
class _Inbox:
    submitted: deque[tuple[GenerateRequest, OnRun]] = field(default_factory=deque)
    cancelled: deque[str] = field(default_factory=deque)
    stopping: bool = False


class Engine:
    def __init__(
        self,
        model: TargetModel,
        policy: Policy,
        draft_client: DraftClient | None = None,
        config: EngineConfig | None = None,
        mirror: MirrorConfig | None = None,
    ) -> None:
        """mirror: draft ahead, so that the pool drafts while the target verifies; needs a client that can."""
        self.config = config or EngineConfig()
        self.max_length = min(model.max_length, self.config.max_model_len or model.max_length)
        self._model = model
        self._num_steps = 0
        self._fences = Fences(lambda: self._num_steps)
        scheduler = Scheduler(model.ledger, SchedulerConfig(self.config.max_batch, self.config.prefill_chunk))
        self._drafting = self._open_drafting(draft_client, mirror) if draft_client else None
        guarded = GuardedPolicy(policy, self._fences.around("policy"))
        self._stepper = self._make_stepper(guarded, scheduler, mirror)
        self._inbox = _Inbox()
        self._wake = threading.Condition()
        self._live: dict[str, tuple[Sequence, OnRun]] = {}
        self._next_id = 0
        self._open: set[str] = set()  # submitted and not finished, guarded by _wake
        self._beat = time.monotonic()
        self._totals = StepStats()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def _open_drafting(self, client: DraftClient, mirror: MirrorConfig | None) -> Drafting:
        """Raises ConfigError when drafts cannot come ahead."""
        if mirror is not None and not isinstance(client, MirrorClient):
            raise ConfigError(f"{type(client).__name__} does not draft ahead; leave mirror out")
        fence = self._fences.around("way to the draft pool")
        guarded = (
            GuardedMirrorClient(client, fence)
            if isinstance(client, MirrorClient)
            else GuardedDraftClient(client, fence)
        )
        return Drafting(guarded, self.config.incarnation, self._model.decoder.config.vocab_size)

    def _make_stepper(self, policy: Policy, scheduler: Scheduler, mirror: MirrorConfig | None) -> Stepper:
        drafting = self._drafting
        if mirror is None or drafting is None or not isinstance(drafting.client, MirrorClient):
            return Stepper(self._model, policy, scheduler, drafting)
        fence = self._fences.around("record of rounds")
        return MirrorStepper(self._model, policy, scheduler, drafting, drafting.client, mirror, fence)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancels what is left and waits for the thread."""
        with self._wake:
            self._inbox.stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: GenerateRequest, on_run: OnRun) -> None:
        """Runs arrive on the engine's thread; on_run must not block.

        Raises PromptTooLong, InvalidRequest (an empty prompt, an id in use), QueueFull, or NotReady when stopping.
        """
        check_prompt(request, self.max_length, self._model.decoder.config.vocab_size)
        with self._wake:
            if self._inbox.stopping:
                raise NotReady("the engine is stopping; send the request to another replica")
            if request.request_id in self._open:
                raise InvalidRequest(f"request {request.request_id} is running already; give each its own id")
            if len(self._open) >= self.config.max_batch + self.config.max_queue:
                raise QueueFull(f"{len(self._open)} requests are running or queued; try again later")
            self._open.add(request.request_id)
            self._inbox.submitted.append((request, on_run))
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Ends a request with FinishReason.ABORT; one that has finished, or was never known, is ignored."""
        with self._wake:
            self._inbox.cancelled.append(request_id)
            self._wake.notify()

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last turned, an idle loop turns once a second; infinite when it has ended."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    @property
    def open_requests(self) -> tuple[str, ...]:
        """Ids of those that were submitted and have not finished."""
        with self._wake:
            return tuple(self._open)

    def stats(self) -> EngineStats:
        scheduler, ledger, totals = self._stepper.scheduler, self._model.ledger, self._totals
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_pages=ledger.num_free,
            num_pages=ledger.num_pages,
            num_steps=self._num_steps,
            num_preempted=totals.num_preempted,
            num_drafted=totals.drafted,
            num_accepted=totals.accepted,
            num_committed=totals.committed,
            num_missed_drafts=self._drafting.num_missed if self._drafting else 0,
            num_failures=self._fences.num_failures,
            mirror=self._stepper.stats if isinstance(self._stepper, MirrorStepper) else None,
        )

    @property
    def timeline(self) -> Timeline | None:
        """The last rounds; None where nothing is drafted ahead."""
        return self._stepper.timeline if isinstance(self._stepper, MirrorStepper) else None

    def _loop(self) -> None:
        reason = FinishReason.ABORT
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
            self._inbox.stopping = True
            late, self._inbox.submitted = self._inbox.submitted, deque()
        for request, on_run in late:
            _told(on_run, TokenRun(request.request_id, 0, (), reason, SequenceStats()))
        try:
            self._end_all(reason)
        except Exception:
            logger.exception("the engine's sequences could not be removed")

    def _turn(self) -> None:
        try:
            turn = self._stepper.step()
        except Exception:
            logger.exception("a step of %d sequences failed; they end with an error", len(self._live))
            self._end_all(FinishReason.ERROR)
            return
        self._num_steps += 1
        self._totals = _add(self._totals, turn.stats)
        for run in turn.runs:
            self._deliver(run)

    def _take_inbox(self) -> bool:
        """Empties the inbox, waiting for something to do when idle. False when the engine is to stop."""
        with self._wake:
            inbox = self._inbox
            if not (self._stepper.scheduler.has_work or inbox.submitted or inbox.cancelled or inbox.stopping):
                self._wake.wait(timeout=1.0)
            taken, self._inbox = self._inbox, _Inbox(stopping=self._inbox.stopping)
        for request, on_run in taken.submitted:
            self._live[request.request_id] = (Sequence(self._next_id, request, self.max_length), on_run)
            self._stepper.scheduler.add(self._live[request.request_id][0])
            self._next_id += 1
        for request_id in taken.cancelled:
            self._end(request_id, FinishReason.ABORT)
        return not taken.stopping

    def _deliver(self, run: TokenRun) -> None:
        _, on_run = self._live[run.request_id]
        if run.finish_reason is not None:
            self._forget(run.request_id)
        if not _told(on_run, run):
            self.cancel(run.request_id)

    def _end(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._live:
            self._stepper.remove(self._tell_end(request_id, reason))

    def _end_all(self, reason: FinishReason) -> None:
        """All are told before the first is removed: a removal that fails leaves nobody waiting."""
        for sequence in [self._tell_end(request_id, reason) for request_id in list(self._live)]:
            self._stepper.remove(sequence)

    def _tell_end(self, request_id: str, reason: FinishReason) -> Sequence:
        sequence, on_run = self._live[request_id]
        self._forget(request_id)
        _told(on_run, TokenRun(request_id, sequence.num_generated, (), reason, sequence.stats))
        return sequence

    def _forget(self, request_id: str) -> None:
        del self._live[request_id]
        with self._wake:
            self._open.discard(request_id)


def _told(on_run: OnRun, run: TokenRun) -> bool:
    """False when the caller's function failed: its request is then cancelled, and the others go on."""
    try:
        on_run(run)
    except Exception:
        logger.exception("the receiver of request %s failed; the request is cancelled", run.request_id)
        return False
    return True


def check_prompt(request: GenerateRequest, max_length: int, vocab_size: int) -> None:
    """Raises InvalidRequest or PromptTooLong unless the prompt leaves room for one token and fits the vocabulary."""
    num_prompt = len(request.prompt_ids)
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty; send at least one token", "prompt")
    if num_prompt >= max_length:
        raise PromptTooLong(
            f"the prompt has {num_prompt} tokens and this model holds {max_length}, one for the answer at least; "
            "shorten the prompt",
            "prompt",
        )
    if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
        raise InvalidRequest(f"a prompt token is outside the vocabulary of {vocab_size}", "prompt")


def _add(totals: StepStats, step: StepStats) -> StepStats:
    return replace(
        totals,
        num_preempted=totals.num_preempted + step.num_preempted,
        drafted=totals.drafted + step.drafted,
        accepted=totals.accepted + step.accepted,
        committed=totals.committed + step.committed,
    )
