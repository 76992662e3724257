"""A request on its way through the pool: its blocks are gathered and answered together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from drafters.nested import Pick
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus

Reply = Callable[[DraftReply], None]

logger = logging.getLogger(__name__)


class Round:
    """Replies once, when every row of the request has its block. Times in seconds of the worker's clock."""

    def __init__(self, request: DraftRequest, reply: Reply, now: float) -> None:
        self._request = request
        self._reply = reply
        self._blocks: list[DraftBlock | None] = [None] * len(request.rows)
        self._submitted = now
        self.wait_ms: float | None = None

    def start(self, now: float) -> bool:
        """Its first pass begins; False when an earlier one did."""
        if self.wait_ms is not None:
            return False
        self.wait_ms = (now - self._submitted) * 1e3
        return True

    def answer(self, index: int, block: DraftBlock) -> None:
        """index: the row's place in the request."""
        assert self._blocks[index] is None, "a row is answered once"
        self._blocks[index] = block
        self.reply_if_complete()

    def reply_if_complete(self) -> None:
        blocks = tuple(block for block in self._blocks if block is not None)
        if len(blocks) < len(self._blocks):
            return
        reply = DraftReply(self._request.incarnation, self._request.round_id, blocks, self.wait_ms or 0.0)
        try:
            self._reply(reply)
        except Exception:
            logger.exception("a reply to %s could not be handed over", self._request.incarnation)


@dataclass(slots=True)
class Job:
    """A row that is being drafted. length: how many tokens, after the cut to context and pages."""

    round: Round
    index: int
    row: DraftRow
    length: int
    picks: list[Pick] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.picks) >= self.length

    def answer(self) -> None:
        """With what has been drafted, which may be less than was asked."""
        block = DraftBlock(
            self.row.sequence_id,
            self.row.base_length,
            DraftStatus.OK,
            tuple(pick.token for pick in self.picks),
            tuple(pick.exit for pick in self.picks),
            tuple(pick.confidence for pick in self.picks),
        )
        self.round.answer(self.index, block)


def refusal(row: DraftRow, status: DraftStatus) -> DraftBlock:
    return DraftBlock(row.sequence_id, row.base_length, status)
