"""The tokens that the pool knows of one sequence. Integers only.

Committed tokens never change. So the pool's own drafts stay up to the first that differs from what was committed; from
there on they are replaced. The last known token is never settled: the next draft is predicted from it, so it runs in
the pass that wants its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile

from drafters.picks import Pick
from model.prefixes import page_keys
from protocol.branch import EMPTY, prefix_hash
from protocol.request import SamplingParams

Key = tuple[str, int]  # (incarnation of the target, its sequence id)


@dataclass(slots=True)
class CachedTokens:
    """id: its name in the drafter. depth, sampling: of the last message. last_used: seconds.

    tokens: committed ones, then drafts. committed: how many came from the target. picks: the drafts, by position.
    keys: of the full pages of committed tokens, the last of which is left out.
    """

    key: Key
    id: int
    depth: int
    sampling: SamplingParams
    last_used: float
    tokens: list[int] = field(default_factory=list, repr=False)
    committed: int = 0
    picks: dict[int, Pick] = field(default_factory=dict, repr=False)
    keys: list[bytes] = field(default_factory=list, repr=False)
    _hashed: int = 0  # committed tokens in `_hash`
    _hash: int = field(default=EMPTY, repr=False)

    def reconcile(self, start: int, truth: Sequence[int], drafts: Sequence[int] = ()) -> int:
        """Takes over the truth at positions [start, start + len(truth)) and the drafts behind it. Returns the length up
        to which nothing changed.

        Raises ValueError when the tokens before `start` are not known.
        """
        if not 0 <= start <= self.committed:
            raise ValueError(f"tokens from {start} on came, {self.committed} are known")
        new = [*truth, *drafts]
        kept = agreed_length(self.tokens, start, new)
        self.tokens[kept:] = new[kept - start :]
        self.committed = start + len(truth)
        self.picks = {at: pick for at, pick in self.picks.items() if self.committed <= at < kept}
        if min(kept, self.committed) < self._hashed:
            self._hashed, self._hash = 0, EMPTY
        return kept

    def explain(self, picks: Sequence[Pick]) -> None:
        """Notes the picks of the drafts behind the committed tokens, up to the first other token."""
        for at, pick, token in zip(count(self.committed), picks, self.tokens[self.committed :], strict=False):
            if pick.token != token:
                return
            self.picks[at] = pick

    def drafted(self, start: int, truth: Sequence[int]) -> list[Pick]:
        """The drafts behind exactly this truth at [start, ...); none where anything else is known."""
        end = start + len(truth)
        if start > self.committed or agreed_length(self.tokens, start, truth) < end:
            return []
        return [self.picks[at] for at in takewhile(self.picks.__contains__, count(end))]

    def add(self, pick: Pick) -> None:
        self.picks[len(self.tokens)] = pick
        self.tokens.append(pick.token)

    def cut(self, length: int) -> bool:
        """Forgets drafts at positions from `length` on. Returns whether there were any."""
        if len(self.tokens) <= length:
            return False
        del self.tokens[length:]
        self.picks = {at: pick for at, pick in self.picks.items() if at < length}
        return True

    def prefix_key(self) -> int:
        """The hash of all committed tokens; each is hashed once."""
        self._hash = prefix_hash(self.tokens[self._hashed : self.committed], self._hash)
        self._hashed = self.committed
        return self._hash

    def name_pages(self, size: int) -> list[bytes]:
        """Makes the keys of full pages of so many tokens."""
        full = max(self.committed - 1, 0) // size
        if len(self.keys) < full:
            self.keys = page_keys(self.keys, self.tokens[: full * size], size)
        return self.keys

    def check(self) -> None:
        assert self.committed <= len(self.tokens), "more is committed than is known"
        drafts = {at: self.tokens[at : at + 1] for at in self.picks}
        assert drafts == {at: [pick.token] for at, pick in self.picks.items()}, "a draft that is not known"


def agreed_length(tokens: Sequence[int], start: int, truth: Sequence[int]) -> int:
    """How many of `tokens` agree with the truth at [start, ...), those before `start` counted as agreeing."""
    stop = min(len(tokens), start + len(truth))
    return next((at for at in range(start, stop) if tokens[at] != truth[at - start]), stop)


def positions_fed(base_length: int, length: int) -> int:
    """How many positions a draft of `length` tokens runs: the last drafted token is not fed."""
    return base_length + max(length, 1) - 1


def draft_room(base_length: int, num_positions: int) -> int:
    """How many tokens can be drafted within `num_positions`; 0 or less if the base does not fit."""
    return num_positions - base_length + 1
