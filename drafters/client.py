"""The draft client within one process, as the command line and tests use it: the twin of the one over links."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from drafters.worker import DraftWorker
from protocol.branch import AheadRequest, Branch, BranchReply
from protocol.draft import DraftReply, DraftRequest


class LocalDraftClient:
    """Steps the worker itself while it waits. Several clients, each its own incarnation, may share a worker."""

    def __init__(
        self,
        worker: DraftWorker,
        incarnation: str,
        deadline_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._incarnation = incarnation
        self._clock = clock
        self._deadline_s = deadline_s
        self._branches: list[Branch] = []

    def open(self, request: DraftRequest) -> None:
        self._worker.submit(request, _ignore)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        if math.isfinite(self._deadline_s):
            request = replace(request, deadline_ms=request.deadline_ms or 1e3 * self._deadline_s)
        replies: list[DraftReply] = []
        self._worker.submit(request, replies.append)
        until = self._clock() + self._deadline_s
        if request.deadline_ms and _complete(request, replies):
            self._worker.step()  # rows that were answered NOT_YET go on meanwhile; nobody else steps the worker
        while not _complete(request, replies) and self._clock() < until and self._worker.step() is not None:
            pass
        blocks = {block.sequence_id: block for reply in replies for block in reply.blocks}
        ordered = tuple(blocks[row.sequence_id] for row in request.rows if row.sequence_id in blocks)
        return replace(replies[-1], blocks=ordered) if ordered else None

    def ahead(self, request: AheadRequest) -> None:
        self._worker.ahead(request, self._take)

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        """Steps until there is nothing left to do, so every branch of a round is there at once."""
        while self._worker.step() is not None:
            pass
        taken, self._branches = self._branches, []
        return taken

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._worker.close(self._incarnation, sequence_ids)

    def _take(self, reply: BranchReply) -> None:
        self._branches.extend(reply.branches)


def _complete(request: DraftRequest, replies: Sequence[DraftReply]) -> bool:
    return sum(len(reply.blocks) for reply in replies) == len(request.rows)


def _ignore(reply: DraftReply) -> None:
    """Context was handed over; nobody waits for the answer."""
