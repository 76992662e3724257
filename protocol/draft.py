"""What a target asks of a draft replica, and the answer.

A row carries the committed tokens [start, base_length) that the pool has not seen; committed tokens never
change, so the pool only has to find where its own drafts part from them. A pool that does not know
tokens [0, start) answers NEED_CONTEXT and gets start = 0 next. Replies carry round and base_length: what comes
late is recognised and dropped. incarnation: whose it is; over a link that is the link's, and not in the message.

A request may have a deadline. No row waits beyond it, and none waits for a context to be read first: what is not
drafted in time is NOT_YET, and nothing is forgotten by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from protocol.logit_rules import Ruled
from protocol.request import SamplingParams


class DraftStatus(StrEnum):
    OK = "ok"
    NEED_CONTEXT = "need_context"
    BUSY = "busy"  # no pages or no row free: length 0, ask again later
    TOO_LONG = "too_long"  # past the drafter's context, or an id beyond its vocabulary: length 0 for good
    NOT_YET = "not_yet"  # no token was ready by the deadline, or the context is still being read: ask again next round


Refusal = Callable[[Sequence[int], int], memoryview | None]


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One sequence of a round.

    tokens: the committed tokens at positions [start, base_length).
    length: how many tokens to draft at positions base_length, base_length + 1, ...; 0 only hands over context.
    depth: its own, where it is not that of the request.
    stop_probability: the draft ends behind the token at which the product of its confidences is at most this; 0 never
    ends it.
    refusal: what the grammar of the text allows behind a draft in place of a pick that it refuses, as bytes with a bit
    for each token; None where it takes the pick.
    ruled: the text under the rules of its logits; None: they change nothing behind it. Both are for a drafter in the
    target's thread: no link carries them.
    """

    sequence_id: int
    start: int
    tokens: tuple[int, ...] = field(repr=False)
    length: int
    sampling: SamplingParams
    depth: int | None = None
    stop_probability: float = 0.0
    refusal: Refusal | None = field(default=None, repr=False, compare=False)
    ruled: Ruled | None = field(default=None, repr=False, compare=False)

    @property
    def base_length(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """depth: of all rows that name none. deadline_ms: from receipt, by the pool's clock; 0: none."""

    incarnation: str
    round_id: int
    depth: int
    rows: tuple[DraftRow, ...]
    deadline_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DraftBlock:
    """Drafted at the depth that was asked for. confidences: advice to the router, never to the text."""

    sequence_id: int
    base_length: int
    status: DraftStatus
    tokens: tuple[int, ...] = field(default=(), repr=False)
    confidences: tuple[float, ...] = ()


def refusal(row: DraftRow, status: DraftStatus) -> DraftBlock:
    """The answer to a row that is not drafted for."""
    return DraftBlock(row.sequence_id, row.base_length, status)


@dataclass(frozen=True, slots=True)
class DraftReply:
    """What one pass of the pool finished of a round; a round may come in several messages."""

    incarnation: str
    round_id: int
    blocks: tuple[DraftBlock, ...]
    wait_ms: float = 0.0  # time the request queued at the pool before its first pass


class DraftClient(Protocol):
    """A target's way to the draft pool. Safe to call from the engine thread; never raises.

    Transport twins (in process, over a link) pass the same contract tests, tests/drafters/test_client_contract.py and
    test_ahead_contract.py.
    """

    def open(self, request: DraftRequest) -> None:
        """Hand over context (rows of length 0) without waiting for an answer."""

    def draft(self, request: DraftRequest) -> DraftReply | None:
        """Blocks until every row is answered or the deadline passes; None: decode without a draft.

        A reply may lack rows that were late.
        """

    def close(self, sequence_ids: Sequence[int]) -> None:
        """Forget these sequences. Does not wait."""
