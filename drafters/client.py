"""The draft client in process: the twin of the gRPC one, for the command line and for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from drafters.worker import DraftWorker
from protocol.draft import DraftReply, DraftRequest


class LocalDraftClient:
    """Steps the worker itself while it waits. Several clients, each its own incarnation, may share a worker."""

    def __init__(
        self,
        worker: DraftWorker,
        incarnation: str,
        deadline_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._incarnation = incarnation
        self._clock = clock
        self._deadline_s = deadline_s

    def open(self, request: DraftRequest) -> None:
        self._worker.submit(request, _ignore)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        replies: list[DraftReply] = []
        until = self._clock() + self._deadline_s
        self._worker.submit(request, replies.append)
        while not replies and self._clock() < until and self._worker.step() is not None:
            pass
        return replies[0] if replies else None

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._worker.close(self._incarnation, sequence_ids)


def _ignore(reply: DraftReply) -> None:
    """Context was handed over; nobody waits for the answer."""
