"""The pool worker: drafts for all targets, one token step at a time.

    submit: reconcile each row with what the pool knows, reserve its pages, or refuse it
    ahead:  the same for rows that are being verified, which get branches (drafters/branches.py)
    step:   one ragged pass; every drafting row of any target gains a token, contexts a chunk within the budget
    reply:  after each pass, with the rows of a request and the branches that it finished; refused ones at once

Rows join at the next step and leave when their draft is done, at its length or its floor. A row that asks for a probe
first has its context settled in all layers, then tells in a pass of probes (drafters/probe.py), then drafts; such a
pass goes first, but never twice in a row while others have something to do. Branches ride in the passes of drafts of
their depth, which do not get longer by it; what was drafted in the branch that came true is not drafted again.

The owner calls the worker from one thread and gives it the clock; nothing here raises because of what a target sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from drafters.ahead import BranchesReply, BranchJob, Lead
from drafters.branches import Branches
from drafters.known import Key, Span
from drafters.nested import NestedDrafter, PassRow, Pick
from drafters.probe import ProbeRow, nothing_new
from drafters.resident import Resident
from drafters.residents import PoolLimits, Residents
from drafters.rounds import Draft, Job, MeanWait, Reply, Round
from protocol.branch import AheadRequest, ExitHint
from protocol.draft import DraftRequest, DraftRow, DraftStatus, refusal
from protocol.errors import ConfigError
from protocol.plan import DepthRule
from protocol.sparing import SparingLog
from protocol.stats import PassStats, PoolStats

DEFAULT_LIMITS = PoolLimits()
PACE = 0.2  # of a new pass in the mean time of a token

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
    token_ms: float = 0.0  # of a pass, for each token that it makes of a row: a running mean
    wait: MeanWait = field(default_factory=MeanWait)


class DraftWorker:
    def __init__(
        self, drafter: NestedDrafter, limits: PoolLimits = DEFAULT_LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds, never going back."""
        self._drafter = drafter
        self._limits = limits
        self._clock = clock
        self._log = SparingLog(logger, clock)  # of what targets ask in vain
        self._residents = Residents(drafter, limits, self._log)
        self._branches = Branches(self._residents, drafter.max_positions, drafter.vocab_size)
        self._counts = _Counts()
        self._answered: dict[Round, None] = {}  # those that may have blocks to hand over
        self._probed = False  # by the last pass

    def describe(self) -> Description:
        return Description(self._drafter.exits, self._drafter.max_positions, self._drafter.vocab_size)

    def submit(self, request: DraftRequest, reply: Reply) -> None:
        """`reply` is called with the rows that are refused, from here, then with those that later calls finish."""
        round_ = Round(request, reply, self._clock())
        self._answered[round_] = None
        unknown = self._unknown_rules(request.incarnation, (row.depth or request.depth for row in request.rows))
        for index, row in enumerate(request.rows):
            depth = row.depth or request.depth
            if depth in unknown:
                round_.answer(index, refusal(row, DraftStatus.OK))
            else:
                self._take(round_, index, (request.incarnation, row.sequence_id), row, depth)
        self._reply()

    def ahead(self, request: AheadRequest, reply: BranchesReply) -> None:
        """`reply` is called with the branches that later calls finish, and once with none when none will come."""
        round_ = self._branches.open(request, reply)
        rules = [row.context.depth or request.depth for row in request.rows]
        unknown = self._unknown_rules(request.incarnation, rules)
        for row, depth in zip(request.rows, rules, strict=True):
            key = request.incarnation, row.context.sequence_id
            self._answer(self._residents.withdraw(key))
            if depth in unknown:
                self._residents.end_ahead(key)
            else:
                status = self._branches.take(round_, key, row, depth, self._clock())
                self._counts.busy += status is DraftStatus.BUSY
        self._reply()

    def hint(self, hint: ExitHint) -> None:
        self._branches.hint(hint)
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
        probing = self._residents.probing(self._limits.prefill_tokens)
        chosen = [] if probing and not self._probed else self._choose()
        self._probed = bool(probing) and not chosen
        if chosen:
            return self._draft(chosen)
        return self._probe(probing) if probing else None

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
            num_branches=self._branches.num_finished,
        )

    def check(self) -> None:
        """Raises AssertionError when the bookkeeping contradicts itself."""
        self._residents.check()

    def _unknown_rules(self, incarnation: str, rules: Iterable[DepthRule]) -> set[DepthRule]:
        """Those that name a depth which is no exit."""
        unknown = set()
        for rule in dict.fromkeys(rules):
            try:
                self._drafter.check_depth(rule)
            except ConfigError as error:
                self._log.warning(f"{incarnation}: {error}")
                unknown.add(rule)
        return unknown

    def _take(self, round_: Round, index: int, key: Key, row: DraftRow, depth: DepthRule) -> None:
        self._answer(self._residents.withdraw(key))
        draft = Draft(length=row.length, floor=row.floor)
        draft.take(self._residents.drafted(key, row, depth))
        status, length = self._residents.admit(key, row, depth, self._clock(), draft.picks)
        self._counts.busy += status is DraftStatus.BUSY
        if status is not DraftStatus.OK:
            round_.answer(index, refusal(row, status))
            return
        job = Job(length=length, floor=row.floor, picks=draft.picks[:length], round=round_, index=index, row=row)
        if row.probe:
            job.told = self._residents.untold(key)
            job.probe = None if job.told else nothing_new(row.base_length, len(self._drafter.exits))
        if job.is_done:
            job.answer()
        else:
            self._residents.give(key, job)

    def _choose(self) -> list[tuple[Resident, Span]]:
        budget = self._limits.prefill_tokens
        chosen = []
        depths: set[DepthRule] = set()  # that somebody waits for
        taken: set[Key] = set()
        for resident in self._residents.waiting():
            if depths and resident.depth not in depths and isinstance(resident.job, Lead | BranchJob):
                continue
            if self._residents.rides(resident) and resident.key not in taken:
                continue
            span = self._residents.next_span(resident, budget)
            if span is not None:
                taken.add(resident.key)
                budget -= span.num_prefill
                chosen.append((resident, span))
                if isinstance(resident.job, Job):
                    depths.add(resident.depth)
        return chosen

    def _row(self, resident: Resident, span: Span, branch_ahead: int) -> PassRow:
        tokens = resident.known.tokens[self._drafter.written(resident.id) : span.length]
        depth, job = self._residents.goal(resident), resident.job
        if job is None or job.probes:
            return PassRow(resident.id, tokens, span.length, span.settled, depth, resident.sampling)
        most = self._limits.ahead if isinstance(job, Job) else branch_ahead + isinstance(job, Lead)
        ahead = min(job.num_left, most)
        return PassRow(resident.id, tokens, span.length, span.settled, depth, resident.sampling, ahead, job.floor_left)

    def _draft(self, chosen: Sequence[tuple[Resident, Span]]) -> PassStats:
        residents = [resident for resident, _ in chosen]
        branch_ahead = self._branch_ahead(residents)
        rows = [self._row(resident, span, branch_ahead) for resident, span in chosen]
        began = self._start_rounds(residents)
        picks = self._attempt(residents, lambda: self._drafter.run(rows))
        for resident, own in zip(residents, picks, strict=bool(picks)):
            self._try(resident, partial(self._advance, resident, own))
        return self._finish(residents, began, sum(span.num_prefill for _, span in chosen), picks)

    def _branch_ahead(self, residents: Sequence[Resident]) -> int:
        """Tokens of a branch in this pass: no more than who waits drafts in it, and few where better may soon come."""
        most = self._limits.branch_ahead
        waited_for = [resident.job.num_left for resident in residents if isinstance(resident.job, Job)]
        if waited_for:
            most = min(most, max(waited_for))
        elif self._counts.token_ms and not any(isinstance(resident.job, Lead) for resident in residents):
            most = min(most, int(self._limits.branch_ms / self._counts.token_ms))
        return max(most, 1)

    def _probe(self, probing: Sequence[tuple[Resident, Job]]) -> PassStats:
        residents = [resident for resident, _ in probing]
        rows = [
            ProbeRow(resident.id, job.told.start, resident.known.tokens[job.told.start - 1 :], resident.sampling)
            for resident, job in probing
        ]
        began = self._start_rounds(residents)
        probes = self._attempt(residents, lambda: self._drafter.probe(rows))
        for (resident, job), probe in zip(probing, probes, strict=bool(probes)):
            job.probe = probe
            resident.probed = job.told.stop
            self._try(resident, partial(self._go_on, resident, job))
        return self._finish(residents, began, sum(len(job.told) for _, job in probing), ())

    def _start_rounds(self, residents: Sequence[Resident]) -> float:
        """The time now, in seconds."""
        now = self._clock()
        for resident in residents:
            job = resident.job
            if isinstance(job, Job) and job.round.start(now):
                self._counts.wait.add(job.round.wait_ms or 0.0, now)
        return now

    def _attempt(self, residents: Sequence[Resident], run: Callable[[], list[T]]) -> list[T]:
        """What the pass gives for each row; nothing when it fails, and the rows are forgotten."""
        try:
            return run()
        except Exception:
            logger.exception("a pass of %d rows failed; their sequences are forgotten", len(residents))
            for resident in residents:
                self._answer(self._residents.forget(resident.key))
            return []

    def _try(self, resident: Resident, action: Callable[[], None]) -> None:
        """What a pass brings about for one row; when that fails, its sequence alone is forgotten."""
        try:
            action()
        except Exception:
            logger.exception("a row could not go on; its sequence is forgotten")
            self._answer(self._residents.forget(resident.key))

    def _finish(
        self, residents: Sequence[Resident], began: float, num_prefill: int, picks: Sequence[Sequence[Pick]]
    ) -> PassStats:
        self._reply()
        num_targets = len({resident.key[0] for resident in residents})
        self._counts.passes += 1
        self._counts.mixed_passes += num_targets > 1
        pass_ms = (self._clock() - began) * 1e3
        if not num_prefill and (num_tokens := max(map(len, picks), default=0)):
            self._counts.token_ms += PACE * (pass_ms / num_tokens - self._counts.token_ms)
        return PassStats(
            num_rows=len(residents),
            num_targets=num_targets,
            num_prefill_tokens=num_prefill,
            num_exited=tuple(sum(pick.exit == exit for own in picks for pick in own) for exit in self._drafter.exits),
            pass_ms=pass_ms,
        )

    def _advance(self, resident: Resident, picks: Sequence[Pick]) -> None:
        if picks and resident.job is not None:
            for pick in picks:
                resident.add(pick)
            resident.job.picks.extend(picks)
            self._counts.drafted += len(picks)
            self._go_on(resident, resident.job)
        elif resident.job is None and self._residents.context_missing(resident) <= 0:
            self._residents.withdraw(resident.key)

    def _go_on(self, resident: Resident, job: Draft) -> None:
        resident.last_used = self._clock()
        if job.is_done and isinstance(job, Job):
            self._answer(self._residents.withdraw(resident.key))
        elif not isinstance(job, Job):
            self._branches.drafted(resident.key, job)

    def _answer(self, job: Draft | None) -> None:
        """Nobody waits for what was drafted ahead."""
        if isinstance(job, Job):
            job.answer()
            self._answered[job.round] = None

    def _reply(self) -> None:
        rounds, self._answered = self._answered, {}
        for round_ in rounds:
            round_.reply()
        self._branches.reply()
