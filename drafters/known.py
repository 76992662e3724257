"""What the pool knows of a sequence's tokens, and the decisions that follow from lengths alone.

Committed tokens never change, so the pool's own drafts are right up to the first place where they part from
the truth; from there on the truth replaces them. The last known token is never settled: it is the one that the
next draft is predicted from, so it runs in the pass that wants its logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protocol.branch import EMPTY, prefix_hash

Key = tuple[str, int]  # (incarnation of the target, its sequence id)


@dataclass(slots=True)
class Known:
    """tokens: committed ones, then drafts. committed: how many of them came from the target. hashed: how many of these
    went into `hash`.
    """

    tokens: list[int] = field(default_factory=list, repr=False)
    committed: int = 0
    hashed: int = 0
    hash: int = EMPTY

    def reconcile(self, start: int, truth: Sequence[int], drafts: Sequence[int] = ()) -> int:
        """Take over the truth at positions [start, start + len(truth)) and the drafts behind it; the length up to which
        nothing changed.

        Raises ValueError when the tokens before `start` are not known.
        """
        if not 0 <= start <= self.committed:
            raise ValueError(f"tokens from {start} on came, {self.committed} are known")
        new = [*truth, *drafts]
        kept = agreed_length(self.tokens, start, new)
        self.tokens[kept:] = new[kept - start :]
        self.committed = start + len(truth)
        if min(kept, self.committed) < self.hashed:
            self.hashed, self.hash = 0, EMPTY
        return kept

    def key(self) -> int:
        """Of all committed tokens; each is hashed once."""
        self.hash = prefix_hash(self.tokens[self.hashed : self.committed], self.hash)
        self.hashed = self.committed
        return self.hash


def agreed_length(tokens: Sequence[int], start: int, truth: Sequence[int]) -> int:
    """How many of `tokens` agree with the truth at [start, ...), those before `start` counted as agreeing."""
    stop = min(len(tokens), start + len(truth))
    return next((at for at in range(start, stop) if tokens[at] != truth[at - start]), stop)


def positions_fed(base_length: int, length: int) -> int:
    """Positions that drafting `length` tokens runs: the last drafted token is not fed."""
    return base_length + max(length, 1) - 1


def draft_room(base_length: int, num_positions: int) -> int:
    """How many tokens can be drafted within `num_positions`; 0 or less when not even the base fits."""
    return num_positions - base_length + 1


def untold(probed: int, base_length: int, limit: int) -> range:
    """The committed positions that a probe tells of: those from `probed` on, at most the last `limit`."""
    return range(min(max(probed, base_length - limit), base_length), base_length)


@dataclass(frozen=True, slots=True)
class Span:
    """One row's part of a pass: `length` known positions count, and those below `settled` go to the last exit.

    num_prefill: positions taken from the pass's prefill budget.
    """

    length: int
    settled: int
    num_prefill: int = 0


def next_span(num_tokens: int, settled: int, max_ride: int, budget: int) -> Span | None:
    """What a drafting row does next: draft a token, settle a chunk of its context, or both; None: wait.

    settled: positions that have reached the rule's last exit. Up to max_ride missing ones ride along in a decode
    row; more are a prefill, which takes from the budget.
    """
    missing = num_tokens - 1 - settled
    if missing <= max_ride:
        return Span(num_tokens, 0)
    chunk = context_span(num_tokens, settled, budget)
    if chunk is None or chunk.settled < num_tokens - 1:
        return chunk
    return Span(num_tokens, chunk.settled, chunk.num_prefill)


def context_span(num_tokens: int, settled: int, budget: int) -> Span | None:
    """The next chunk of a context that is only handed over; None: nothing missing, or nothing left to spend."""
    chunk = min(num_tokens - 1 - settled, budget)
    return Span(settled + chunk, settled + chunk, chunk) if chunk > 0 else None


@dataclass(frozen=True, slots=True)
class Idle:
    """A sequence that may be evicted."""

    key: Key
    last_used: float
    num_pages: int


def evictions(idle: Iterable[Idle], pages_short: int, rows_short: int) -> list[Key] | None:
    """Whom to evict, oldest last use first, to gain that many pages and rows; None when all would not do."""
    chosen: list[Key] = []
    for candidate in sorted(idle, key=lambda one: one.last_used):
        if pages_short <= 0 and rows_short <= 0:
            break
        chosen.append(candidate.key)
        pages_short -= candidate.num_pages
        rows_short -= 1
    return chosen if pages_short <= 0 and rows_short <= 0 else None
