"""A request on its way through the pool: its blocks are gathered and handed over together, pass by pass.

Rows that are refused are answered at once, the others with the pass that finished them, so no row waits for the
long context of another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from drafters.nested import Pick
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus, Probe

Reply = Callable[[DraftReply], None]

WAIT_DECAY = 0.9  # of the mean, per request
WAIT_HALF_LIFE_S = 5.0

logger = logging.getLogger(__name__)


class Round:
    """Each row of the request is in one of its replies. Times in seconds of the worker's clock."""

    def __init__(self, request: DraftRequest, reply: Reply, now: float) -> None:
        self._request = request
        self._reply = reply
        self._missing = set(range(len(request.rows)))
        self._fresh: dict[int, DraftBlock] = {}
        self._submitted = now
        self.wait_ms: float | None = None

    def start(self, now: float) -> bool:
        """Its first pass begins; False when an earlier one did."""
        if self.wait_ms is not None:
            return False
        self.wait_ms = (now - self._submitted) * 1e3
        return True

    def answer(self, index: int, block: DraftBlock) -> None:
        """index: the row's place in the request. A row is answered once."""
        if index in self._missing:
            self._missing.remove(index)
            self._fresh[index] = block

    def reply(self) -> None:
        """Hand over the blocks that came since the last reply, in the order of the rows; nothing when none did."""
        if not self._fresh and self._request.rows:
            return
        blocks = tuple(self._fresh[index] for index in sorted(self._fresh))
        self._fresh.clear()
        reply = DraftReply(self._request.incarnation, self._request.round_id, blocks, self.wait_ms or 0.0)
        try:
            self._reply(reply)
        except Exception:
            logger.exception("a reply to %s could not be handed over", self._request.incarnation)


@dataclass(slots=True, kw_only=True)
class Draft:
    """Tokens that are being drafted behind what is known of a sequence.

    length: how many, after the cut to context and pages. floor: they end behind the token at which the product of their
    confidences is at most this; 0 never ends them.
    """

    length: int
    floor: float = 0.0
    picks: list[Pick] = field(default_factory=list, repr=False)

    @property
    def probes(self) -> bool:
        """Whether something is to be run before the draft."""
        return False

    @property
    def is_done(self) -> bool:
        return not self.probes and (len(self.picks) >= self.length or self._has_sunk)

    @property
    def num_left(self) -> int:
        return self.length - len(self.picks)

    @property
    def floor_left(self) -> float:
        """The floor for the product of the confidences that are still to come."""
        return self.floor / self._survival if self.floor > 0 else 0.0

    def take(self, picks: Iterable[Pick]) -> None:
        """As many of these, drafted already, as it would draft itself."""
        for pick in picks:
            if self.is_done:
                return
            self.picks.append(pick)

    @property
    def _survival(self) -> float:
        return math.prod(pick.confidence for pick in self.picks)

    @property
    def _has_sunk(self) -> bool:
        return bool(self.picks) and self.floor > 0 and self._survival <= self.floor


@dataclass(slots=True, kw_only=True)
class Job(Draft):
    """A row that is being drafted, or probed, or first probed and then drafted.

    told: the positions that its probe tells of.
    """

    round: Round
    index: int
    row: DraftRow
    told: range = range(0)
    probe: Probe | None = None

    @property
    def probes(self) -> bool:
        return self.probe is None and bool(self.told)

    def answer(self) -> None:
        """With what has been told and drafted, which may be less than was asked."""
        block = DraftBlock(
            self.row.sequence_id,
            self.row.base_length,
            DraftStatus.OK,
            tuple(pick.token for pick in self.picks),
            tuple(pick.exit for pick in self.picks),
            tuple(pick.confidence for pick in self.picks),
            self.probe,
        )
        self.round.answer(self.index, block)


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
        """How much the mean still tells: half as much every WAIT_HALF_LIFE_S."""
        return float(0.5 ** ((now - self._since) / WAIT_HALF_LIFE_S))
