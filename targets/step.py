"""One round of a target: plan, draft, verify, commit; what came of it is one record.

The plan says which source the proposals come from: in turn (below), or ahead.py. Whatever that is, a round commits what
the target picks itself, so the text is that of plain.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from model.sampling import NO_PICK
from protocol.logit_rules import TokenLogprobs
from protocol.plan import BatchView, Mode, Plan
from protocol.record import RoundRecord, RowRecord
from protocol.request import OWN, FinishReason, TokenRun
from protocol.stats import QueueTimes
from router.policy import Policy, granted
from targets.drafting import Drafting
from targets.model import TargetModel
from targets.passes import run_pass
from targets.proposals import Proposal, Proposals, mended, nothing
from targets.rounds import Rounds
from targets.scheduler import Schedule, Scheduler
from targets.sequence import Sequence
from targets.verify import num_accepted

Clock = Callable[[], float]  # seconds

logger = logging.getLogger(__name__)
_UNDEFINED = "request %s ends with an error behind %d tokens: the scores of its model are not numbers"


class Source(Protocol):
    """Where a step gets its proposals."""

    def proposals(self, schedule: Schedule) -> Proposals:
        """One for each decoding sequence, at most as long as planned. Called once in every round."""

    def during(self, schedule: Schedule, proposals: Proposals) -> None:
        """Called as the pass begins."""


class InTurn:
    """The pool drafts, and then the target verifies; without a pool there is nothing to verify."""

    def __init__(self, drafting: Drafting | None) -> None:
        self._drafting = drafting

    def proposals(self, schedule: Schedule) -> Proposals:
        if self._drafting is None:
            return nothing(len(schedule.decoding))
        return self._drafting.draft(schedule.decoding, schedule.plan)

    def during(self, schedule: Schedule, proposals: Proposals) -> None:
        return None


class Stepper:
    """Owns one target's scheduler and executes its steps. Single-threaded."""

    def __init__(
        self,
        model: TargetModel,
        policy: Policy,
        scheduler: Scheduler,
        drafting: Drafting | None = None,
        sources: Mapping[Mode, Source] | None = None,
        rounds: Rounds | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """sources: by the modes that a plan may have; without any, proposals come in turn. rounds: reads records."""
        self.model, self.policy, self.scheduler, self.drafting = model, policy, scheduler, drafting
        self.rounds, self.clock = rounds or Rounds(), clock
        self.queue_times = QueueTimes()
        self._in_turn = InTurn(drafting)
        self._sources: Mapping[Mode, Source] = sources or {Mode.IN_TURN: self._in_turn}
        self._mode = Mode.IN_TURN  # of the last batch
        self._verified: float | None = None  # when the last pass ended, unless there was nothing left to do

    def step(self) -> tuple[tuple[TokenRun, ...], RoundRecord]:
        began = self.clock() if self._verified is None else self._verified
        self.admit()
        schedule = self.plan()
        source = self._sources.get(schedule.plan.mode, self._in_turn)
        planned = self.clock()
        proposals = mended(source.proposals(schedule), schedule.decoding, schedule.rooms)
        drafted = self.clock()
        for sequence in schedule.decoding:
            sequence.draft_s += drafted - planned
        source.during(schedule, proposals)
        picks, logprobs = run_pass(self.model, schedule, proposals)
        verified = self.clock()
        runs, record = self.commit(schedule, proposals, picks, logprobs)
        record = replace(
            record,
            began_s=began,
            planned_s=planned,
            drafted_s=drafted,
            verified_s=verified,
            ended_s=self.clock(),
        )
        self._verified = verified if self.scheduler.has_work else None
        self.policy.observe(record)
        self.rounds.add(record)
        return runs, record

    def admit(self) -> None:
        """Those that there is room for; the pool is handed the contexts that it may draft behind."""
        admitted = self.scheduler.admit()
        self._count_waits(admitted)
        depth, drafting = self.policy.opening(), self.drafting
        opened = [sequence for sequence in admitted if sequence.may_draft]
        if drafting and opened and depth is not None:
            drafting.open(opened, depth)

    def _count_waits(self, admitted: list[Sequence]) -> None:
        """Of those that are admitted for the first time."""
        for sequence in admitted:
            if sequence.admitted_s is None:
                sequence.admitted_s = self.clock()
                self.queue_times = self.queue_times.plus(sequence.times.queued_s)

    def plan(self) -> Schedule:
        decoding, drafting = self.scheduler.decoding, self.drafting
        if not decoding or drafting is None:
            return self.scheduler.schedule(decoding, Plan(None, (0,) * len(decoding), mode=self._mode))
        rows, exponents = tuple(map(drafting.view, decoding)), self.rounds.calibration.powers
        view = BatchView(rows, tuple(self._sources), exponents, drafting.reads_meanwhile)
        plan = granted(view, self.policy.plan(view))
        self._mode = plan.mode
        return self.scheduler.schedule(decoding, plan)

    def commit(
        self, schedule: Schedule, proposals: Proposals, picks: list[list[int]], logprobs: list[list[TokenLogprobs]]
    ) -> tuple[tuple[TokenRun, ...], RoundRecord]:
        """picks: by row, one more for a decoding sequence than tokens were verified. logprobs: likewise, of rows that
        ask for them. The record has no times yet.
        """
        decoding, chunks = schedule.decoding, schedule.chunks
        context = sum(len(sequence.tokens) for sequence in decoding) / max(len(decoding), 1)
        runs, rows = [], []
        for index, sequence in enumerate(decoding):
            own = picks[index]
            row = _row_record(sequence, proposals.rows[index], proposals.num_fed[index], own)
            sequence.count(row.num_proposed, row.num_accepted)
            sequence.computed += 1 + row.num_accepted
            rows.append(row)
            runs.append(self._commit_run(sequence, own[: row.num_accepted + 1], logprobs[index], row.sources))
        for index, (sequence, size) in enumerate(chunks, len(decoding)):
            sequence.computed += size
            if own := picks[index]:
                runs.append(self._commit_run(sequence, own, logprobs[index], (OWN,)))
            else:
                sequence.of_prompt += logprobs[index]
                self.scheduler.keep(sequence)
        return tuple(runs), RoundRecord(
            round_id=self.rounds.num_steps,
            plan=schedule.plan,
            rows=tuple(rows),
            context=context,
            num_committed=sum(len(run.token_ids) for run in runs),
            num_prefill_tokens=sum(size for _, size in chunks),
            num_preempted=schedule.num_preempted,
            answered=proposals.answered,
            wait_ms=proposals.wait_ms,
        )

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence, here and at the pool. Behind the last one idle time begins."""
        self.scheduler.remove(sequence)
        if not self.scheduler.has_work:
            self._verified = None
        if self.drafting:
            self.drafting.close(sequence)

    def _commit_run(
        self, sequence: Sequence, run: list[int], logprobs: list[TokenLogprobs], sources: tuple[int, ...]
    ) -> TokenRun:
        """run: of which the last may be NO_PICK. logprobs: of those that are kept at least, or none; so sources."""
        index, sound = sequence.num_generated, run if run[-1] != NO_PICK else run[:-1]
        kept = sequence.commit(sound) if sound else ()
        self.scheduler.keep(sequence)
        if len(sound) < len(run) and sequence.finish_reason is None:
            logger.error(_UNDEFINED, sequence.request.request_id, len(sequence.tokens))
            sequence.finish_reason = FinishReason.UNDEFINED
        if sequence.first_s is None:
            sequence.first_s = self.clock()
        told: dict[str, Any] = {"logprobs": tuple(logprobs[: len(kept)]), "num_cached": sequence.num_cached}
        if not index:
            told["of_prompt"] = tuple(sequence.of_prompt)
        if sequence.request.tells_sources:
            told["sources"] = sources[: len(kept)]
        if sequence.finish_reason is None:
            self.model.ledger.truncate(sequence.id, len(sequence.tokens))
            return TokenRun(sequence.request.request_id, index, kept, **told)
        sequence.ended_s = self.clock()
        self.remove(sequence)
        return TokenRun(sequence.request.request_id, index, kept, sequence.finish_reason, sequence.stats, **told)


def _row_record(sequence: Sequence, proposal: Proposal | None, num_fed: int, picks: list[int]) -> RowRecord:
    """picks: one more than tokens were verified, which are fewer than proposed where the model broke."""
    num_verified = len(picks) - 1
    if proposal is None or not num_verified:
        return RowRecord(sequence.id, num_fed=num_fed)
    accepted, own = num_accepted(picks, proposal.tokens[:num_verified]), proposal
    num_forced = max(own.num_forced - len(own.tokens) + num_verified, 0)
    drafted = own.origin, own.depth, own.length, own.confidences
    return RowRecord(sequence.id, num_verified, accepted, *drafted, num_fed, num_forced)
