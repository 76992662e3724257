"""The part of a request that goes to one draft replica, and its answer, checked block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from link.link import Link, read_any
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftStatus, refusal


class Share:
    """asked: what is sent. expires: when an answer is late. came: when the last block arrived. Times are in seconds."""

    def __init__(self, request: DraftRequest, link: Link, expires: float) -> None:
        self.link = link
        self.expires = expires
        self.came = -math.inf
        self.wait_ms = 0.0
        self.asked = fitting(request, link.member.max_positions)
        self._missing = {row.sequence_id: row for row in self.asked.rows}
        too_long = (row for row in request.rows if row.sequence_id not in self._missing)
        self.blocks = {row.sequence_id: refusal(row, DraftStatus.TOO_LONG) for row in too_long}

    @property
    def is_over(self) -> bool:
        """Whether no more answers can come."""
        return not self._missing or not self.link.open

    def add(self, reply: DraftReply, now: float) -> list[DraftBlock]:
        """Takes the blocks of this request; others came late and are dropped. Returns those taken.

        Raises ValueError for a block that no pool makes of its row.
        """
        if reply.round_id != self.asked.round_id:
            return []
        taken = []
        for block in reply.blocks:
            row = self._missing.get(block.sequence_id)
            if row is not None and row.base_length == block.base_length:
                if len(block.tokens) > row.length:
                    raise ValueError(f"{len(block.tokens)} tokens came for a row of {row.length}")
                self.blocks[block.sequence_id] = block
                del self._missing[block.sequence_id]
                taken.append(block)
                self.came = now
        self.wait_ms = reply.wait_ms
        return taken

    @property
    def num_drafted(self) -> int:
        """How many rows came with tokens. Refusals come at once, and tell nothing of how fast the pool drafts."""
        return sum(bool(block.tokens) for block in self.blocks.values())

    @property
    def num_not_yet(self) -> int:
        """How many rows have a context that is still to be read, or had no token by the pool's deadline."""
        return sum(block.status is DraftStatus.NOT_YET for block in self.blocks.values())

    def mostly_late(self, since: float) -> bool:
        """since: what came later was waited for too long, if it is NOT_YET."""
        return len(self._missing) + (self.num_not_yet if self.came > since else 0) > self.num_drafted


def wait_for(shares: Sequence[Share], clock: Callable[[], float]) -> None:
    """Reads the links of these parts until every answer is there or late."""
    until = min(share.expires for share in shares)
    while links := [share.link for share in shares if not share.is_over]:
        if (left_s := until - clock()) <= 0:
            return
        read_any(links, left_s)


def merged(request: DraftRequest, shares: Sequence[Share]) -> DraftReply | None:
    """The answers so far, in the order of the rows."""
    blocks: dict[int, DraftBlock] = {}
    for share in shares:
        blocks |= share.blocks
    ordered = tuple(blocks[row.sequence_id] for row in request.rows if row.sequence_id in blocks)
    if not ordered:
        return None
    return DraftReply(request.incarnation, request.round_id, ordered, max(share.wait_ms for share in shares))


def fitting(request: DraftRequest, max_positions: int) -> DraftRequest:
    """The request without rows that are too long for the drafter."""
    if all(row.base_length <= max_positions for row in request.rows):
        return request
    return replace(request, rows=tuple(row for row in request.rows if row.base_length <= max_positions))
