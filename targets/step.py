"""The plain turn: plan, draft, verify, commit, in series. Faster turns are built from the same parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from protocol.plan import BatchView
from protocol.request import TokenRun
from protocol.stats import StepStats
from router.policy import Policy
from targets.drafting import Drafting
from targets.model import ForwardRow, TargetModel
from targets.scheduler import Schedule, Scheduler
from targets.sequence import Sequence
from targets.verify import num_accepted

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step committed, and its counts."""

    runs: tuple[TokenRun, ...]
    stats: StepStats


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

    def step(self) -> Turn:
        schedule = self.plan()
        start = self.clock()
        drafts = self.draft(schedule)
        drafted = self.clock()
        picks = self.verify(schedule, drafts)
        verified = self.clock()
        return self.commit(
            schedule, drafts, picks, draft_ms=1e3 * (drafted - start), verify_ms=1e3 * (verified - drafted)
        )

    def plan(self) -> Schedule:
        admitted = self.scheduler.admit()
        if self.drafting and admitted:
            depth = self.policy.plan(BatchView(tuple(sequence.view for sequence in admitted))).depth
            if depth is not None:
                self.drafting.open(admitted, depth)
        return self.scheduler.schedule()

    def draft(self, schedule: Schedule) -> list[tuple[int, ...]]:
        if self.drafting is None or schedule.depth is None:
            return [()] * len(schedule.decoding)
        return self.drafting.draft(schedule.decoding, schedule.lengths, schedule.depth)

    def verify(self, schedule: Schedule, drafts: list[tuple[int, ...]]) -> list[list[int]]:
        """The target's picks: one list per decoding sequence, then one per chunk, empty inside a prompt."""
        rows = [*map(_verify_row, schedule.decoding, drafts), *(_chunk_row(*chunk) for chunk in schedule.chunks)]
        if not rows:
            return []
        sequences = [*schedule.decoding, *(sequence for sequence, _ in schedule.chunks)]
        wanted = [
            (sequence.request.sampling, row.start + len(row.tokens) - row.num_logits + index + 1)
            for sequence, row in zip(sequences, rows, strict=True)
            for index in range(row.num_logits)
        ]
        picks = iter(self.model.pick(rows, [sampling for sampling, _ in wanted], [at for _, at in wanted]))
        return [[next(picks) for _ in range(row.num_logits)] for row in rows]

    def commit(
        self,
        schedule: Schedule,
        drafts: list[tuple[int, ...]],
        picks: list[list[int]],
        draft_ms: float,
        verify_ms: float,
    ) -> Turn:
        runs = []
        num_decoding = len(schedule.decoding)
        before = sum(sequence.accepted for sequence in schedule.decoding)
        for sequence, draft, own in zip(schedule.decoding, drafts, picks[:num_decoding], strict=True):
            accepted = num_accepted(own, draft)
            sequence.rounds += 1
            sequence.drafted += len(draft)
            sequence.accepted += accepted
            sequence.computed += 1 + accepted
            runs.append(self._commit_run(sequence, own[: accepted + 1]))
        for (sequence, size), own in zip(schedule.chunks, picks[num_decoding:], strict=True):
            sequence.computed += size
            if own:
                runs.append(self._commit_run(sequence, own))
        stats = StepStats(
            num_decoding=num_decoding,
            num_prefill_tokens=sum(size for _, size in schedule.chunks),
            num_preempted=schedule.num_preempted,
            drafted=sum(map(len, drafts)),
            accepted=sum(sequence.accepted for sequence in schedule.decoding) - before,
            committed=sum(len(run.token_ids) for run in runs),
            draft_ms=draft_ms,
            verify_ms=verify_ms,
        )
        return Turn(tuple(runs), stats)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence, here and at the pool."""
        self.scheduler.remove(sequence)
        if self.drafting:
            self.drafting.close(sequence)

    def _commit_run(self, sequence: Sequence, run: list[int]) -> TokenRun:
        index = sequence.num_generated
        kept = sequence.commit(run)
        if sequence.finish_reason is None:
            self.model.ledger.truncate(sequence.id, len(sequence.tokens))
            return TokenRun(sequence.request.request_id, index, kept)
        self.remove(sequence)
        return TokenRun(sequence.request.request_id, index, kept, sequence.finish_reason, sequence.stats)


def _verify_row(sequence: Sequence, draft: tuple[int, ...]) -> ForwardRow:
    tokens = [sequence.tokens[-1], *draft]
    return ForwardRow(sequence.id, sequence.computed, tokens, num_logits=len(tokens))


def _chunk_row(sequence: Sequence, size: int) -> ForwardRow:
    end = sequence.computed + size
    gives_first = end == sequence.prefill_end and not sequence.num_generated
    return ForwardRow(sequence.id, sequence.computed, sequence.tokens[sequence.computed : end], int(gives_first))
