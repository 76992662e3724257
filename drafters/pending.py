"""Requests on their way through the pool: finished rows are gathered, and handed over together after each pass.

Refused rows are answered at once, the others after the pass that finished them. So no row waits for the long context of
another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from drafters.row import Row
from protocol.branch import BranchReply
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus

Reply = Callable[[DraftReply], None]

WAIT_DECAY = 0.9  # of the mean, per request
WAIT_HALF_LIFE_S = 5.0

R = TypeVar("R", DraftReply, BranchReply)

logger = logging.getLogger(__name__)


class PendingRequest:
    """Each row of the request is in one of its replies. Times in seconds of the worker's clock."""

    def __init__(self, request: DraftRequest, reply: Reply, now: float) -> None:
        self.deadline = now + request.deadline_ms / 1e3 if request.deadline_ms else math.inf
        self.wait_ms: float | None = None
        self._request = request
        self._reply = reply
        self._missing = set(range(len(request.rows)))
        self._fresh: dict[int, DraftBlock] = {}
        self._submitted = now

    def start(self, now: float) -> bool:
        """Notes its first pass. Returns False if that had begun before."""
        if self.wait_ms is not None:
            return False
        self.wait_ms = (now - self._submitted) * 1e3
        return True

    def answer(self, index: int, block: DraftBlock) -> None:
        """Answers a row, once. index: its place in the request."""
        if index in self._missing:
            self._missing.remove(index)
            self._fresh[index] = block

    def reply(self) -> None:
        """Hands over the blocks since the last reply, if any, in the order of the rows."""
        if not self._fresh and self._request.rows:
            return
        blocks = tuple(self._fresh[index] for index in sorted(self._fresh))
        self._fresh.clear()
        reply = DraftReply(self._request.incarnation, self._request.round_id, blocks, self.wait_ms or 0.0)
        hand_over(self._reply, reply)


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a row with a draft goes: a place in a request."""

    request: PendingRequest
    index: int
    asked: DraftRow

    def ended(self, row: Row, status: DraftStatus = DraftStatus.OK) -> None:
        """Answers with the tokens so far, which may be fewer than asked."""
        block = DraftBlock(
            self.asked.sequence_id,
            self.asked.base_length,
            status,
            tuple(pick.token for pick in row.picks),
            tuple(pick.confidence for pick in row.picks),
        )
        self.request.answer(self.index, block)


def hand_over(reply: Callable[[R], None], message: R) -> None:
    """Hands a reply over. One that fails to take it goes without; the others are served."""
    try:
        reply(message)
    except Exception:
        logger.exception("what was drafted for %s could not be handed over", message.incarnation)


@dataclass(slots=True)
class MeanWait:
    """How long requests waited for their first pass, in ms: a running mean that fades while none comes."""

    _mean_ms: float = 0.0
    _since: float = -math.inf

    def add(self, wait_ms: float, now: float) -> None:
        self._mean_ms += (1 - WAIT_DECAY * self._faded(now)) * (wait_ms - self._mean_ms)
        self._since = now

    def at(self, now: float) -> float:
        return self._mean_ms * self._faded(now)

    def _faded(self, now: float) -> float:
        """The weight of the mean, which halves every WAIT_HALF_LIFE_S."""
        return float(0.5 ** ((now - self._since) / WAIT_HALF_LIFE_S))
