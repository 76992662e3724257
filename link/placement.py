"""On which draft replica a sequence is drafted for: rendezvous hashing, so that all of them share the work.

None gets more than its share of a target's sequences: a round waits for the slowest, and by chance alone one of four
would have a quarter more. A sequence stays where it is, for a move costs its whole context: it goes elsewhere when its
replica is there no more, or was too full for it several times in a row. A new replica gets new sequences only.
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
    """The draft replica of each sequence of one target. For one thread."""

    target: str
    _homes: dict[int, _Home] = field(default_factory=dict)

    def home(self, sequence_id: int, replicas: Collection[str]) -> str | None:
        """replicas: those that can be used. None: there is none."""
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
        """Its replica was too full for it."""
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
    """Best first. Without one of them the order of the others is the same."""
    return sorted(replicas, key=lambda replica: _score(f"{target} {sequence_id} {replica}"), reverse=True)


def _score(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
