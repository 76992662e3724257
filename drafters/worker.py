"""The pool worker: drafts for all targets, pass by pass.

    submit: reconcile each row with the cache, reserve its pages, or refuse it (drafters/intake.py)
    ahead:  the same for proposals that are being verified, to draft on behind them (drafters/branches.py)
    step:   answer the rows that are late, then one ragged pass over the rows that drafters/choose.py picks
    reply:  after each pass, with the rows of a request and the branches that it finished; refused ones at once

Rows join at the next pass and leave when their draft is done, at its length, its stop or its deadline.

The owner calls the worker from one thread and gives it the clock. No message of a target makes it raise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drafters.branches import BranchesReply, PendingBranches
from drafters.choose import Part, Waiting, choose
from drafters.intake import Intake
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.pace import UNKNOWN
from drafters.pending import Answer, MeanWait, PendingRequest, Reply
from drafters.picks import PassRow, Pick
from drafters.row import Row
from protocol.branch import AheadRequest
from protocol.draft import DraftRequest
from protocol.stats import PassStats, PoolStats

DEFAULT_LIMITS = PoolLimits()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Description:
    """What a target needs to know before it drafts here."""

    exits: tuple[int, ...]
    max_positions: int
    vocab_size: int


class DraftWorker:
    def __init__(
        self, drafter: NestedDrafter, limits: PoolLimits = DEFAULT_LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds, never going back."""
        self._drafter = drafter
        self._limits = limits
        self._clock = clock
        self._intake = Intake(drafter, limits, clock)
        self._rows, self._cache = self._intake.rows, self._intake.cache
        self._wait = MeanWait()
        self._num_passes = self._num_mixed = self._num_drafted = self._num_rows = self._num_read = 0
        self._pass_ms = 0.0
        self._pace = UNKNOWN

    def describe(self) -> Description:
        return Description(self._drafter.exits, self._drafter.max_positions, self._drafter.vocab_size)

    def submit(self, request: DraftRequest, reply: Reply) -> None:
        """`reply` is called at once with refused rows, then with those that later calls finish."""
        now = self._clock()
        pending = PendingRequest(request, reply, now)
        self._intake.answered[pending] = None
        for index, row in enumerate(request.rows):
            key = request.incarnation, row.sequence_id
            self._intake.take(Answer(pending, index, row), key, row.depth or request.depth, now)
        self._intake.reply()

    def ahead(self, request: AheadRequest, reply: BranchesReply) -> None:
        """`reply` is called with what later calls draft."""
        pending = PendingBranches(request, reply)
        for row in request.rows:
            key = request.incarnation, row.context.sequence_id
            self._intake.take_ahead(pending, key, row, row.context.depth or request.depth, self._clock())
        self._intake.reply()

    def close(self, incarnation: str, sequence_ids: Sequence[int]) -> None:
        """Forgets these sequences. Drafts for them are answered as far as they got."""
        for sequence_id in sequence_ids:
            self._intake.forget((incarnation, sequence_id))
        self._intake.reply()

    def drop(self, incarnation: str) -> None:
        """Forgets the sequences of a target that is gone, without an answer."""
        for key in self._cache.keys_of(incarnation):
            self._intake.forget(key)
        self._intake.answered.clear()

    def expire(self, now: float) -> None:
        """Forgets the sequences that nobody used for the limits' ttl_s."""
        for key in self._cache.expired(now):
            self._intake.forget(key)

    def step(self) -> PassStats | None:
        """Runs one ragged pass; None if there is nothing to do."""
        began = self._clock()
        self._intake.answer_late(began, self._pace.token_ms)
        self._intake.adopt()
        chosen = choose([self._waiting(row) for row in self._rows], self._limits, began, self._pace)
        if not chosen:
            self._intake.reply()
            return None
        rows = [self._rows[part.id] for part in chosen]
        self._start(rows, began)
        parts = [self._pass_row(part) for part in chosen]
        self._num_read += sum(map(num_read, rows, parts))
        picks = self._run(rows, parts)
        for row, own in zip(rows, picks, strict=bool(picks)):
            self._advance(row, own)
        self._intake.reply()
        return self._count(rows, picks, began, sum(part.num_prefill for part in chosen))

    def stats(self) -> PoolStats:
        return PoolStats(
            num_sequences=len(self._cache),
            num_free_pages=self._drafter.ledger.num_free,
            num_pages=self._drafter.ledger.num_pages,
            num_passes=self._num_passes,
            num_mixed_passes=self._num_mixed,
            num_drafted=self._num_drafted,
            num_busy=self._intake.num_busy,
            wait_ms=self._wait.at(self._clock()),
            num_branches=self._intake.num_branches,
            num_rows=self._num_rows,
            pass_ms=self._pass_ms,
            num_not_yet=self._intake.num_not_yet,
            num_evicted=self._cache.num_evicted,
            num_read=self._num_read,
            num_adopted=self._cache.num_adopted,
        )

    def check(self) -> None:
        """Raises AssertionError when the bookkeeping contradicts itself."""
        self._cache.check()

    def _waiting(self, row: Row) -> Waiting:
        cached = row.cached
        return Waiting(
            cached.id,
            cached.key[0],
            row.priority,
            cached.depth,
            len(cached.tokens),
            self._drafter.settled(cached.id, cached.depth),
            row.num_left,
            row.deadline,
            self._cache.next_page(cached),
        )

    def _pass_row(self, part: Part) -> PassRow:
        row = self._rows[part.id]
        tokens = row.cached.tokens[self._drafter.written(part.id) : part.length]
        return PassRow(
            part.id,
            tokens,
            part.length,
            row.cached.depth,
            row.cached.sampling,
            part.num_drafts,
            row.stop_left,
        )

    def _start(self, rows: Sequence[Row], now: float) -> None:
        for row in rows:
            if isinstance(row.sink, Answer) and row.sink.request.start(now):
                self._wait.add(row.sink.request.wait_ms or 0.0, now)

    def _run(self, rows: Sequence[Row], parts: Sequence[PassRow]) -> list[list[Pick]]:
        """Runs a pass. Returns the picks of each row; none if it fails, and the rows are forgotten."""
        try:
            return self._drafter.run(parts)
        except Exception:
            logger.exception("a pass of %d rows failed; their sequences are forgotten", len(rows))
            for row in rows:
                self._intake.forget(row.key)
            return []

    def _advance(self, row: Row, picks: Sequence[Pick]) -> None:
        """Applies the picks of a pass to one row. If that fails, only its sequence is forgotten."""
        if row not in self._rows:  # another row of the same pass has ended it
            return
        try:
            self._take_picks(row, picks)
        except Exception:
            logger.exception("a row could not go on; its sequence is forgotten")
            self._intake.forget(row.key)

    def _take_picks(self, row: Row, picks: Sequence[Pick]) -> None:
        for pick in picks:
            row.cached.add(pick)
        row.take(picks)
        self._num_drafted += len(picks)
        if picks:
            row.cached.last_used = self._clock()
            self._intake.tell(row)
        self._cache.keep(row.cached)
        self._intake.end_if_done(row)

    def _count(self, rows: Sequence[Row], picks: Sequence[Sequence[Pick]], began: float, num_prefill: int) -> PassStats:
        num_targets = len({row.key[0] for row in rows})
        self._num_passes += 1
        self._num_mixed += num_targets > 1
        self._num_rows += len(rows)
        now = self._clock()
        pass_ms = (now - began) * 1e3
        self._pass_ms += pass_ms
        num_drafting = sum(map(bool, picks))
        self._pace = self._pace.after(pass_ms, max(map(len, picks), default=0), num_prefill, now, num_drafting)
        return PassStats(
            num_rows=len(rows),
            num_targets=num_targets,
            num_prefill_tokens=num_prefill,
            pass_ms=pass_ms,
        )


def num_read(row: Row, part: PassRow) -> int:
    """How many committed tokens the row's part of a pass runs for the first time."""
    return max(min(part.length, row.cached.committed) - (part.length - len(part.tokens)), 0)
