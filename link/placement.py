"""Which draft replica drafts for a sequence: rendezvous hashing, so that all replicas share the work.

Each gets at most its share of a target's sequences: a round waits for the slowest replica, and hashing alone would give
one of four a quarter more. A sequence stays where it is, since a move costs its whole context. It moves when its
replica is gone, or was too full for it several times in a row. A new replica gets new sequences only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from math import ceil

MOVES_AFTER = 2  # refusals in a row


@dataclass(slots=True)
class _Home:
    replica: str
    num_busy: int = 0  # in a row


@dataclass(slots=True)
class SequencePlacement:
    """The draft replica of each sequence of one target. Used by one thread."""

    target: str
    _homes: dict[int, _Home] = field(default_factory=dict)

    def home(self, sequence_id: int, replicas: Collection[str]) -> str | None:
        """The replica of a sequence, chosen among those in use; None if there are none."""
        home = self._homes.get(sequence_id)
        if home is not None and home.replica in replicas:
            return home.replica
        if not replicas:
            return None
        held = Counter(home.replica for home in self._homes.values())
        fair = ceil((sum(held[one] for one in replicas) + 1) / len(replicas))
        best = next(one for one in ranked(self.target, sequence_id, replicas) if held[one] < fair)
        self._homes[sequence_id] = _Home(best)
        return best

    def refused(self, sequence_id: int, replicas: Collection[str]) -> None:
        """Counts that a sequence's replica was too full for it."""
        home = self._homes.get(sequence_id)
        if home is None:
            return
        home.num_busy += 1
        order = ranked(self.target, sequence_id, replicas)
        if home.num_busy >= MOVES_AFTER and home.replica in order:
            after = order.index(home.replica) + 1
            self._homes[sequence_id] = _Home(order[after % len(order)])

    def served(self, sequence_id: int) -> None:
        if sequence_id in self._homes:
            self._homes[sequence_id].num_busy = 0

    def is_at(self, sequence_id: int, replica: str) -> bool:
        home = self._homes.get(sequence_id)
        return home is not None and home.replica == replica

    def forget(self, sequence_ids: Iterable[int]) -> None:
        for sequence_id in sequence_ids:
            self._homes.pop(sequence_id, None)


def ranked(target: str, sequence_id: int, replicas: Collection[str]) -> list[str]:
    """The replicas, best first. Taking one away keeps the order of the others."""
    return sorted(replicas, key=lambda replica: _score(f"{target} {sequence_id} {replica}"), reverse=True)


def _score(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
