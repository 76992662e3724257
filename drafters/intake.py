"""From messages to rows: a target's row is reconciled with the cache, then given pages or refused.

A row with a deadline whose context has yet to be read is answered NOT_YET at once; the reading goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from drafters.branches import Behind, PendingBranches, behind, drafted_behind
from drafters.cache import DraftCache
from drafters.cached_tokens import CachedTokens, Key
from drafters.choose import is_late
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.pending import Answer, PendingRequest
from drafters.picks import Pick
from drafters.row import Priority, Row, Rows, as_wanted
from protocol.branch import AheadRow
from protocol.draft import DraftRow, DraftStatus, refusal
from protocol.sparing import SparingLog

logger = logging.getLogger(__name__)


class Intake:
    """Owns the rows and the cache that they work on. answered: requests that may have something to hand over."""

    def __init__(self, drafter: NestedDrafter, limits: PoolLimits, clock: Callable[[], float]) -> None:
        self.rows = Rows()
        self.cache = DraftCache(drafter, limits, self.rows, self.forget)
        self.answered: dict[PendingRequest | PendingBranches, None] = {}
        self.num_busy = self.num_not_yet = self.num_branches = 0
        self._drafter = drafter
        self._limits = limits
        self._log = SparingLog(logger, clock)  # of what targets ask in vain

    def reply(self) -> None:
        """Hands over what is ready."""
        pending, self.answered = self.answered, {}
        for request in pending:
            request.reply()

    def forget(self, key: Key) -> None:
        self.interrupt(key)
        self.cache.remove(key)

    def take(self, answer: Answer, key: Key, depth: int, now: float) -> None:
        asked = answer.asked
        if not self._has_exit(key, depth):
            answer.request.answer(answer.index, refusal(asked, DraftStatus.OK))
            return
        known = as_wanted(self.interrupt(key, asked, depth), asked.length, asked.stop_probability)
        status, length = self._admit(key, asked, depth, now, tokens_of(known), known)
        cached = self.cache.get(key)
        if status is not DraftStatus.OK or cached is None:
            answer.request.answer(answer.index, refusal(asked, status))
            return
        row = Row(cached=cached, length=length, priority=Priority.DRAFT, sink=answer, picks=known[:length])
        row.stop_probability, row.deadline = asked.stop_probability, answer.request.deadline
        missing = self.cache.missing(cached)
        if row.is_done:
            answer.ended(row)
        elif missing > self._limits.max_ride and row.deadline < math.inf:
            answer.ended(row, self._late(row))
        else:
            self.rows.add(row)
            return
        self._read_on(cached)

    def take_ahead(self, request: PendingBranches, key: Key, asked: AheadRow, depth: int, now: float) -> None:
        proposal = asked.proposal if self._in_vocabulary(asked.proposal) else ()
        length = asked.length if len(proposal) == len(asked.proposal) else 0
        context = replace(asked.context, length=len(proposal) + 1 + length)
        known = self.interrupt(key, context, depth)
        if not self._has_exit(key, depth):
            return
        drafts = *proposal, *tokens_of(drafted_behind(proposal, known))
        status, room = self._admit(key, context, depth, now, drafts, known)
        cached = self.cache.get(key)
        if status is not DraftStatus.OK or cached is None:
            return
        row = behind(request, asked, cached, room - len(proposal) - 1, known)
        self.tell(row)
        if row.length <= 0 or row.is_done:
            self._read_on(cached)
        else:
            self.rows.add(row)

    def _admit(
        self,
        key: Key,
        row: DraftRow,
        depth: int,
        now: float,
        drafts: Sequence[int],
        known: Sequence[Pick],
    ) -> tuple[DraftStatus, int]:
        """Takes a row, or refuses it and forgets the sequence. Committed tokens never change, so an invalid row stays
        invalid in later rounds; and the pages of one that outgrows the pool may be what the others lack.
        """
        status, length = DraftStatus.TOO_LONG, 0
        if self._makes_sense(key, row):
            status, length = self.cache.admit(key, row, depth, now, drafts, known)
        self.num_busy += status is DraftStatus.BUSY
        if status in (DraftStatus.TOO_LONG, DraftStatus.BUSY):
            self.forget(key)
        return status, length

    def interrupt(self, key: Key, row: DraftRow | None = None, depth: int | None = None) -> list[Pick]:
        """Ends and answers the drafts for the sequence. Returns the tokens of the row that were drafted before."""
        cached = self.cache.get(key)
        if cached is None:
            return []
        if (ended := self.rows.remove(cached)) is not None:
            self.end(ended)
        same = row is not None and (cached.depth, cached.sampling) == (depth, row.sampling)
        return cached.drafted(row.start, row.tokens) if row and same else []

    def end(self, row: Row, status: DraftStatus = DraftStatus.OK) -> None:
        if isinstance(row.sink, Answer):
            row.sink.ended(row, status)
            self.answered[row.sink.request] = None

    def tell(self, row: Row) -> None:
        """Hands over what is drafted ahead so far."""
        if isinstance(row.sink, Behind) and row.drafted:
            row.sink.tell(row)
            self.answered[row.sink.request] = None
            self.num_branches += row.is_done

    def end_if_done(self, row: Row) -> None:
        if row.is_done and (row.priority is not Priority.CONTEXT or self.cache.missing(row.cached) <= 0):
            self.rows.remove(row.cached)
            self.end(row)

    def adopt(self) -> None:
        """Lets rows take over pages that others have read meanwhile."""
        for row in list(self.rows):
            self.cache.adopt(row.cached)
            self.end_if_done(row)

    def _read_on(self, cached: CachedTokens) -> None:
        """Goes on reading its context, for the next time."""
        if self.cache.missing(cached) > 0:
            self.rows.add(Row(cached=cached, length=0, priority=Priority.CONTEXT))

    def answer_late(self, now: float, token_ms: float) -> None:
        for row in list(self.rows):
            if is_late(row.deadline, bool(row.picks), now, token_ms):
                self.rows.remove(row.cached)
                self.end(row, self._late(row))
                self._read_on(row.cached)

    def _late(self, row: Row) -> DraftStatus:
        """The status for a row that has no time left."""
        self.num_not_yet += not row.picks
        return DraftStatus.OK if row.picks else DraftStatus.NOT_YET

    def _has_exit(self, key: Key, depth: int) -> bool:
        if depth not in self._drafter.exits:
            self._log.warning(f"{key}: depth {depth} is not an exit of this drafter; it has {self._drafter.exits}")
        return depth in self._drafter.exits

    def _makes_sense(self, key: Key, row: DraftRow) -> bool:
        sensible = row.start >= 0 and row.base_length > 0 and self._in_vocabulary(row.tokens)
        if not sensible:
            self._log.warning(f"{key}: no drafts for a row without tokens, or with ids beyond the drafter's vocabulary")
        return sensible

    def _in_vocabulary(self, tokens: Sequence[int]) -> bool:
        return not tokens or (min(tokens) >= 0 and max(tokens) < self._drafter.vocab_size)


def tokens_of(picks: Sequence[Pick]) -> list[int]:
    return [pick.token for pick in picks]
