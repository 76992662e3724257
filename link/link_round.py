"""A request on its way over a link: its blocks as they are read, held to what was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from link.link import Link
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus, refusal


class Round:
    """Blocks of one request as they are read from its link. asked: what of it is sent. expires: when that is late."""

    def __init__(self, request: DraftRequest, link: Link, expires: float) -> None:
        self.link = link
        self.expires = expires
        self._request = request
        self.asked = fitting(request, link.member.max_positions)
        self._missing = {row.sequence_id: row for row in self.asked.rows}
        self._blocks: dict[int, DraftBlock] = {}
        if self.asked is not request:
            too_long = [row for row in request.rows if row.sequence_id not in self._missing]
            self._blocks = {row.sequence_id: refusal(row, DraftStatus.TOO_LONG) for row in too_long}
        self._wait_ms = 0.0

    @property
    def is_over(self) -> bool:
        """Nothing more will come."""
        return not self._missing or not self.link.open

    def add(self, reply: DraftReply) -> bool:
        """Takes what belongs to this round, the rest came late and is dropped; True when nothing is missing now.

        Raises ValueError for a block that no pool makes of its row.
        """
        if reply.round_id != self._request.round_id:
            return False
        for block in reply.blocks:
            row = self._missing.get(block.sequence_id)
            if row is not None and row.base_length == block.base_length:
                check_block(block, row, self.link.member.exits)
                self._blocks[block.sequence_id] = block
                del self._missing[block.sequence_id]
        self._wait_ms = reply.wait_ms
        return not self._missing

    def wait(self, clock: Callable[[], float]) -> None:
        """Reads the link until it has come or is late."""
        until = time.monotonic() + self.expires - clock()
        while not self.is_over and (left := until - time.monotonic()) > 0:
            self.link.read(left)

    @property
    def num_drafted(self) -> int:
        """Rows that came with tokens. Refusals come at once, and say nothing of how fast the pool drafts."""
        return sum(bool(block.tokens) for block in self._blocks.values())

    @property
    def mostly_late(self) -> bool:
        return len(self._missing) > self.num_drafted

    def reply(self) -> DraftReply | None:
        """What has come, in the order of the rows."""
        rows = self._request.rows
        blocks = tuple(self._blocks[row.sequence_id] for row in rows if row.sequence_id in self._blocks)
        if not blocks:
            return None
        return DraftReply(self._request.incarnation, self._request.round_id, blocks, self._wait_ms)


def check_block(block: DraftBlock, row: DraftRow, exits: Sequence[int]) -> None:
    """exits: of the drafter. Raises ValueError for an answer to something else."""
    if len(block.tokens) > row.length:
        raise ValueError(f"{len(block.tokens)} tokens came for a row of {row.length}")
    check_exits(block.exits, exits)


def check_exits(found: Sequence[int], exits: Sequence[int]) -> None:
    for exit_ in found:
        if exit_ not in exits:
            raise ValueError(f"a draft left at {exit_}, which is no exit of the drafter; it has {list(exits)}")


def fitting(request: DraftRequest, max_positions: int) -> DraftRequest:
    """Without the rows that are too long for the drafter."""
    if all(len(row.tokens) + row.start <= max_positions for row in request.rows):
        return request
    rows = tuple(row for row in request.rows if row.base_length <= max_positions)
    return replace(request, rows=rows)
