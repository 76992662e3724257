"""What one message between target and pool may hold. Whoever sends more is no replica of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from protocol.branch import AheadRequest, AheadRow
from protocol.draft import DraftRequest, DraftRow

MAX_TOKEN = (1 << 31) - 1
MAX_TOP_K = (1 << 31) - 1
MAX_POSITION = 1 << 24
MAX_LENGTH = 64  # tokens drafted for a row, or in a branch
MAX_ROUNDS = 1024  # that a trace holds
MAX_PROPOSAL = 256  # tokens under verification
MAX_DEPTH = 1 << 12  # layers
MAX_CLOSED = 4096  # sequences
MAX_BLOCKS = 4096  # of a reply, and branches likewise
MAX_MS = 1e9  # of a wait or a deadline
REPLY_BYTES = 8 << 20
TOKENS = 1 << 18
ROW_BYTES, TOKEN_BYTES = 512, 5  # what a row takes beside its tokens, and a token, at most

Asking = DraftRequest | AheadRequest


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """Limits of one message of a target. tokens: of its rows together, proposals counted."""

    rows: int = 64
    tokens: int = TOKENS

    @property
    def num_bytes(self) -> int:
        return (1 + self.rows) * ROW_BYTES + self.tokens * TOKEN_BYTES + MAX_CLOSED * 10


def limits_of(max_rows: int, max_positions: int) -> MessageLimits:
    """What a pool of so many rows needs: the contexts of all of them, or in parts where these are long."""
    contexts = min(max_rows * max_positions, max(max_positions, TOKENS))
    return MessageLimits(max_rows, contexts + max_rows * MAX_PROPOSAL)


def parts(message: Asking, limits: MessageLimits) -> Iterator[Asking]:
    """The message, split by rows into as many as the limits ask for. A single row never exceeds them."""
    whole: Any = message
    if len(whole.rows) <= limits.rows and sum(map(num_tokens, whole.rows)) <= limits.tokens:
        yield message
        return
    began = tokens = 0
    for index, row in enumerate(whole.rows):
        own = num_tokens(row)
        if index > began and (index - began == limits.rows or tokens + own > limits.tokens):
            yield replace(whole, rows=message.rows[began:index])
            began, tokens = index, 0
        tokens += own
    yield replace(whole, rows=message.rows[began:])


def num_tokens(row: DraftRow | AheadRow) -> int:
    return len(row.tokens) if isinstance(row, DraftRow) else len(row.context.tokens) + len(row.proposal)
