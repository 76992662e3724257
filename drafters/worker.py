"""The pool worker: drafts for all targets, one token step at a time.

    submit: reconcile each row with what the pool knows, reserve its pages, or refuse it
    step:   one ragged pass; every drafting row of any target gains a token, contexts a chunk within the budget
    reply:  after each pass, with the rows of a request that it finished; refused ones at once

Rows join at the next step and leave when their draft is done. The owner calls the worker from one thread and
gives it the clock; nothing here raises because of what a target sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drafters.known import Key, Span
from drafters.nested import NestedDrafter, PassRow, Pick
from drafters.residents import PoolLimits, Resident, Residents
from drafters.rounds import Job, MeanWait, Reply, Round, refusal
from protocol.draft import DraftRequest, DraftRow, DraftStatus
from protocol.errors import ConfigError
from protocol.plan import DepthRule
from protocol.stats import PassStats, PoolStats

DEFAULT_LIMITS = PoolLimits()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Description:
    """What a target needs to know before it drafts here."""

    exits: tuple[int, ...]
    max_positions: int
    vocab_size: int


@dataclass(slots=True)
class _Counts:
    passes: int = 0
    mixed_passes: int = 0
    drafted: int = 0
    busy: int = 0
    wait: MeanWait = field(default_factory=MeanWait)


class DraftWorker:
    def __init__(
        self, drafter: NestedDrafter, limits: PoolLimits = DEFAULT_LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds, never going back."""
        self._drafter = drafter
        self._limits = limits
        self._clock = clock
        self._residents = Residents(drafter, limits)
        self._counts = _Counts()
        self._answered: dict[Round, None] = {}  # those that may have blocks to hand over

    def describe(self) -> Description:
        return Description(self._drafter.exits, self._drafter.max_positions, self._drafter.vocab_size)

    def submit(self, request: DraftRequest, reply: Reply) -> None:
        """`reply` is called with the rows that are refused, from here, then with those that later calls finish."""
        round_ = Round(request, reply, self._clock())
        self._answered[round_] = None
        try:
            self._drafter.check_depth(request.depth)
        except ConfigError as error:
            logger.error("%s: %s", request.incarnation, error)
            for index, row in enumerate(request.rows):
                round_.answer(index, refusal(row, DraftStatus.OK))
        else:
            for index, row in enumerate(request.rows):
                self._take(round_, index, (request.incarnation, row.sequence_id), row, request.depth)
        self._reply()

    def close(self, incarnation: str, sequence_ids: Sequence[int]) -> None:
        """Forget these sequences; what is being drafted for them is answered as far as it got."""
        for sequence_id in sequence_ids:
            self._answer(self._residents.forget((incarnation, sequence_id)))
        self._reply()

    def drop(self, incarnation: str) -> None:
        """A target is gone: forget its sequences without an answer."""
        for key in self._residents.keys_of(incarnation):
            self._residents.forget(key)

    def expire(self, now: float) -> None:
        """Forget the sequences that nobody used for the limits' ttl_s."""
        for key in self._residents.expired(now):
            self._residents.forget(key)

    def step(self) -> PassStats | None:
        """One ragged pass; None when there is nothing to do."""
        chosen = self._choose()
        if not chosen:
            return None
        began = self._clock()
        self._start_rounds(chosen, began)
        picks = self._run(chosen)
        self._reply()
        num_targets = len({resident.key[0] for resident, _ in chosen})
        self._counts.passes += 1
        self._counts.mixed_passes += num_targets > 1
        return PassStats(
            num_rows=len(chosen),
            num_targets=num_targets,
            num_prefill_tokens=sum(span.num_prefill for _, span in chosen),
            num_exited=tuple(sum(pick.exit == exit for own in picks for pick in own) for exit in self._drafter.exits),
            pass_ms=(self._clock() - began) * 1e3,
        )

    def stats(self) -> PoolStats:
        return PoolStats(
            num_sequences=len(self._residents),
            num_free_pages=self._drafter.ledger.num_free,
            num_pages=self._drafter.ledger.num_pages,
            num_passes=self._counts.passes,
            num_mixed_passes=self._counts.mixed_passes,
            num_drafted=self._counts.drafted,
            num_busy=self._counts.busy,
            wait_ms=self._counts.wait.at(self._clock()),
        )

    def check(self) -> None:
        """Raises AssertionError when the bookkeeping contradicts itself."""
        self._residents.check()

    def _take(self, round_: Round, index: int, key: Key, row: DraftRow, depth: DepthRule) -> None:
        self._answer(self._residents.withdraw(key))
        status, length = self._residents.admit(key, row, depth, self._clock())
        self._counts.busy += status is DraftStatus.BUSY
        if length:
            self._residents.active[key].job = Job(round_, index, row, length)
        else:
            round_.answer(index, refusal(row, status))

    def _choose(self) -> list[tuple[Resident, Span]]:
        budget = self._limits.prefill_tokens
        chosen = []
        for resident in self._residents.active.values():
            span = self._residents.next_span(resident, budget)
            if span is not None:
                budget -= span.num_prefill
                chosen.append((resident, span))
        return chosen

    def _row(self, resident: Resident, span: Span) -> PassRow:
        tokens = resident.known.tokens[self._drafter.written(resident.id) : span.length]
        left = 1 if resident.job is None else resident.job.length - len(resident.job.picks)
        ahead = min(left, self._limits.ahead)
        return PassRow(resident.id, tokens, span.length, span.settled, resident.depth, resident.sampling, ahead)

    def _start_rounds(self, chosen: Sequence[tuple[Resident, Span]], now: float) -> None:
        for resident, _ in chosen:
            if resident.job is not None and resident.job.round.start(now):
                self._counts.wait.add(resident.job.round.wait_ms or 0.0, now)

    def _run(self, chosen: Sequence[tuple[Resident, Span]]) -> list[list[Pick]]:
        try:
            picks = self._drafter.run([self._row(resident, span) for resident, span in chosen])
        except Exception:
            logger.exception("a pass of %d rows failed; their sequences are forgotten", len(chosen))
            for resident, _ in chosen:
                self._answer(self._residents.forget(resident.key))
            return [[]] * len(chosen)
        for (resident, _), own in zip(chosen, picks, strict=True):
            self._advance(resident, own)
        return picks

    def _advance(self, resident: Resident, picks: Sequence[Pick]) -> None:
        if picks and resident.job is not None:
            resident.known.tokens.extend(pick.token for pick in picks)
            resident.job.picks.extend(picks)
            resident.last_used = self._clock()
            self._counts.drafted += len(picks)
            if resident.job.is_done:
                self._answer(self._residents.withdraw(resident.key))
        elif resident.job is None and self._residents.context_missing(resident) <= 0:
            self._residents.withdraw(resident.key)

    def _answer(self, job: Job | None) -> None:
        if job is not None:
            job.answer()
            self._answered[job.round] = None

    def _reply(self) -> None:
        rounds, self._answered = self._answered, {}
        for round_ in rounds:
            round_.reply()
