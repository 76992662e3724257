"""The plain turn: plan, draft, verify, commit, in series. Faster turns are built from the same parts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from model.sampling import NO_PICK
from protocol.draft import DraftBlock
from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import BatchView, Plan
from protocol.request import FinishReason, SamplingParams, TokenRun
from protocol.stats import StepStats
from router.policy import Policy, granted
from targets.drafting import Drafting, Drafts
from targets.model import ForwardRow, TargetModel
from targets.scheduler import Schedule, Scheduler
from targets.sequence import Sequence
from targets.verify import num_accepted

Clock = Callable[[], float]  # seconds

logger = logging.getLogger(__name__)
_UNDEFINED = "request %s ends with an error behind %d tokens: the scores of its model are not numbers"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step committed, and its counts."""

    runs: tuple[TokenRun, ...]
    stats: StepStats


@dataclass(frozen=True, slots=True)
class Marks:
    """Of one step, in seconds of its clock: planning began, drafting began, it ended, the pass ended."""

    began: float
    planned: float
    drafted: float
    verified: float


@dataclass(frozen=True, slots=True)
class Pass:
    """One row for each decoding sequence, then one for each chunk; per wanted logit how and where it is picked."""

    rows: list[ForwardRow]
    sampling: list[SamplingParams]
    positions: list[int]

    def split(self, picks: list[int]) -> list[list[int]]:
        """By row; empty inside a prompt."""
        own = iter(picks)
        return [[next(own) for _ in range(row.num_logits)] for row in self.rows]


class Stepper:
    """Owns one target's scheduler and executes its steps. Single-threaded."""

    def __init__(
        self,
        model: TargetModel,
        policy: Policy,
        scheduler: Scheduler,
        drafting: Drafting | None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.model = model
        self.policy = policy
        self.scheduler = scheduler
        self.drafting = drafting
        self.clock = clock
        self._verified: float | None = None  # when the last step's pass ended, unless there was nothing left to do

    def step(self) -> Turn:
        began = self.clock()
        self.admit()
        schedule = self.plan()
        planned = self.clock()
        drafts = self.draft(schedule)
        drafted = self.clock()
        picks = self.verify(schedule, drafts)
        return self.commit(schedule, drafts, picks, Marks(began, planned, drafted, self.clock()))

    def admit(self) -> None:
        """Those that there is room for; the pool is handed their context."""
        admitted = self.scheduler.admit()
        depth = self.policy.opening()
        if self.drafting and admitted and depth is not None:
            self.drafting.open(admitted, depth)

    def plan(self, overlap: str = "") -> Schedule:
        decoding = self.scheduler.decoding
        return self.scheduler.schedule(decoding, self.planned(decoding, overlap))

    def planned(self, decoding: list[Sequence], overlap: str = "") -> Plan:
        """What the policy makes of these. overlap: as BatchView's."""
        drafting = self.drafting
        if not decoding or drafting is None:
            return Plan(None, (0,) * len(decoding))
        views = tuple(
            sequence.view(drafting.num_unseen(sequence), not drafting.is_silent(sequence)) for sequence in decoding
        )
        view = BatchView(views, len(self.scheduler.running) - len(self.scheduler.decoding), overlap)
        return granted(view, self.policy.plan(view))

    def draft(self, schedule: Schedule) -> Drafts:
        """What the pool gives. Rounds that ask for nothing count too: sequences are silent for a number of rounds."""
        if self.drafting is None:
            return Drafts((None,) * len(schedule.decoding))
        return self.drafting.draft(schedule.decoding, schedule.plan)

    def verify(self, schedule: Schedule, drafts: Drafts) -> list[list[int]]:
        """The target's picks: one list per decoding sequence, then one per chunk, empty inside a prompt."""
        return self.pick(self.gather(schedule, drafts))

    def gather(self, schedule: Schedule, drafts: Drafts) -> Pass:
        """What goes into the pass: of each draft as much as the policy finds worth verifying."""
        lengths = self.policy.prune(schedule.plan, drafts.blocks)
        rows = [
            *map(_verify_row, schedule.decoding, drafts.blocks, lengths),
            *(_chunk_row(*chunk) for chunk in schedule.chunks),
        ]
        sequences = [*schedule.decoding, *(sequence for sequence, _ in schedule.chunks)]
        wanted = [
            (sequence.request.sampling, row.start + len(row.tokens) - row.num_logits + index + 1)
            for sequence, row in zip(sequences, rows, strict=True)
            for index in range(row.num_logits)
        ]
        return Pass(rows, [sampling for sampling, _ in wanted], [at for _, at in wanted])

    def pick(self, ready: Pass) -> list[list[int]]:
        return self.sound(ready, self.model.pick(ready.rows, ready.sampling, ready.positions)) if ready.rows else []

    def sound(self, ready: Pass, picks: list[int]) -> list[list[int]]:
        """The picks by row. A row that has none at some place is run again without its draft: where that breaks the
        model, attention in plain torch spoils the places before it too.
        """
        rows = ready.split(picks)
        if NO_PICK not in picks:
            return rows
        first = accumulate((row.num_logits for row in ready.rows), initial=0)
        for index, (row, at) in enumerate(zip(ready.rows, first, strict=False)):
            if row.num_logits > 1 and NO_PICK in rows[index]:
                alone = replace(row, tokens=row.tokens[:1], num_logits=1)
                rows[index] = self.model.pick([alone], [ready.sampling[at]], [ready.positions[at]])
        return rows

    def commit(self, schedule: Schedule, drafts: Drafts, picks: list[list[int]], marks: Marks) -> Turn:
        """picks: as `verify` returns them, one more for a sequence than drafted tokens were verified."""
        runs, rows = [], []
        num_decoding = len(schedule.decoding)
        context = sum(len(sequence.tokens) for sequence in schedule.decoding) / max(num_decoding, 1)
        for index, (sequence, own) in enumerate(zip(schedule.decoding, picks[:num_decoding], strict=True)):
            rows.append(_outcome(sequence, own, drafts, index))
            accepted = rows[-1].accepted
            sequence.count(rows[-1].num_verified, accepted)
            sequence.computed += 1 + accepted
            runs.append(self._commit_run(sequence, own[: accepted + 1]))
        for (sequence, size), own in zip(schedule.chunks, picks[num_decoding:], strict=True):
            sequence.computed += size
            if own:
                runs.append(self._commit_run(sequence, own))
        outcome = RoundOutcome(
            plan=schedule.plan,
            rows=tuple(rows),
            context=context,
            draft_ms=1e3 * (marks.drafted - marks.planned),
            wait_ms=drafts.wait_ms,
            verify_ms=1e3 * (marks.verified - marks.drafted),
            rest_ms=1e3 * (marks.planned - (self._verified or marks.began)),
            num_prefill_tokens=sum(size for _, size in schedule.chunks),
            answered=drafts.answered,
            ahead=drafts.ahead,
        )
        self.policy.observe(outcome)
        self._verified = marks.verified if self.scheduler.has_work else None
        return Turn(tuple(runs), _stats(outcome, runs, schedule.num_preempted))

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence, here and at the pool."""
        self.scheduler.remove(sequence)
        if self.drafting:
            self.drafting.close(sequence)

    def _commit_run(self, sequence: Sequence, run: list[int]) -> TokenRun:
        """run: of which the last may be NO_PICK."""
        index, sound = sequence.num_generated, run if run[-1] != NO_PICK else run[:-1]
        kept = sequence.commit(sound) if sound else ()
        if len(sound) < len(run) and sequence.finish_reason is None:
            logger.error(_UNDEFINED, sequence.request.request_id, len(sequence.tokens))
            sequence.finish_reason = FinishReason.UNDEFINED
        if sequence.finish_reason is None:
            self.model.ledger.truncate(sequence.id, len(sequence.tokens))
            return TokenRun(sequence.request.request_id, index, kept)
        self.remove(sequence)
        return TokenRun(sequence.request.request_id, index, kept, sequence.finish_reason, sequence.stats)


def _outcome(sequence: Sequence, own: list[int], drafts: Drafts, index: int) -> RowOutcome:
    block = drafts.blocks[index]
    if block is None:
        return RowOutcome(sequence.id, 0, 0)
    num_verified = len(own) - 1
    accepted = num_accepted(own, block.tokens[:num_verified])
    return RowOutcome(
        sequence.id, accepted, num_verified, block.exits, block.confidences, drafts.num_fed[index]
    )


def _stats(outcome: RoundOutcome, runs: list[TokenRun], num_preempted: int) -> StepStats:
    return StepStats(
        num_decoding=len(outcome.rows),
        num_prefill_tokens=outcome.num_prefill_tokens,
        num_preempted=num_preempted,
        drafted=sum(row.num_verified for row in outcome.rows),
        accepted=sum(row.accepted for row in outcome.rows),
        committed=sum(len(run.token_ids) for run in runs),
        draft_ms=outcome.draft_ms,
        verify_ms=outcome.verify_ms,
    )


def _verify_row(sequence: Sequence, block: DraftBlock | None, length: int) -> ForwardRow:
    tokens = [sequence.tokens[-1], *(block.tokens[:length] if block else ())]
    return ForwardRow(sequence.id, sequence.computed, tokens, num_logits=len(tokens))


def _chunk_row(sequence: Sequence, size: int) -> ForwardRow:
    end = sequence.computed + size
    gives_first = end == sequence.prefill_end and not sequence.num_generated
    return ForwardRow(sequence.id, sequence.computed, sequence.tokens[sequence.computed : end], int(gives_first))
