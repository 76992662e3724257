"""The draft cache: the sequences with their tokens, pages and watermarks, and which of them make room for others.

    unknown --open--> cached, at work (a row has something to do) --done--> cached, idle
    idle --evicted for room, or expired--> unknown        any --closed, or refused for good or for pages--> unknown

A sequence that a target waits for is never evicted. A sequence between two rounds counts as idle only after `idle_s`;
otherwise targets that overfill the pool together would evict each other in every round. But a target that holds more
than its share makes room at once for one that holds less. A known sequence that outgrows the free pages is answered
BUSY and forgotten: sequences that keep their pages and wait for more would never draft again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter

from drafters.cached_tokens import CachedTokens, Key, draft_room, positions_fed
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.picks import Pick
from drafters.row import Priority, Rows
from protocol.draft import DraftRow, DraftStatus


class DraftCache:
    def __init__(self, drafter: NestedDrafter, limits: PoolLimits, rows: Rows, forget: Callable[[Key], None]) -> None:
        """forget: forgets a sequence with everything that depends on it."""
        self._drafter = drafter
        self._limits = limits
        self._rows = rows
        self._forget = forget
        self._cached: dict[Key, CachedTokens] = {}
        self._owned: Counter[str] = Counter()  # sequences by target; none is 0
        self._last_id = 0
        self.num_adopted = 0  # tokens of contexts that others had read
        self.num_evicted = 0  # sequences that made room for others

    def __len__(self) -> int:
        return len(self._cached)

    def get(self, key: Key) -> CachedTokens | None:
        return self._cached.get(key)

    def keys_of(self, incarnation: str) -> list[Key]:
        return [key for key in self._cached if key[0] == incarnation]

    def expired(self, now: float) -> list[Key]:
        idle = (one for one in self._cached.values() if self._rows.of(one) is None)
        return [one.key for one in idle if now - one.last_used >= self._limits.ttl_s]

    def missing(self, cached: CachedTokens) -> int:
        """How many positions of its context have not reached its depth. The last token is left for the draft."""
        return len(cached.tokens) - 1 - self._drafter.settled(cached.id, cached.depth)

    def adopt(self, cached: CachedTokens) -> None:
        """Takes over pages that others have read of the same tokens, if a page or more is missing."""
        if self.missing(cached) >= self._drafter.ledger.page_size:
            before = self._drafter.written(cached.id)
            self._drafter.adopt(cached.id, cached.name_pages(self._drafter.ledger.page_size), cached.depth)
            self.num_adopted += self._drafter.written(cached.id) - before

    def next_page(self, cached: CachedTokens) -> bytes | None:
        """The name of the page that it reads next, if others may share that page."""
        index = self._drafter.settled(cached.id, cached.depth) // self._drafter.ledger.page_size
        return cached.keys[index] if index < len(cached.keys) else None

    def keep(self, cached: CachedTokens) -> None:
        """Offers the pages of these committed tokens to others, as far as they were read."""
        self._drafter.keep(cached.id, cached.name_pages(self._drafter.ledger.page_size))

    def admit(
        self,
        key: Key,
        row: DraftRow,
        depth: int,
        now: float,
        drafts: Sequence[int] = (),
        known: Sequence[Pick] = (),
    ) -> tuple[DraftStatus, int]:
        """Takes over the row's valid context. Returns its status, and how many tokens there are pages for.

        drafts: what goes on behind the context, as far as that has pages. known: those of them that were drafted here.
        The caller forgets a known sequence that is BUSY.
        """
        room = draft_room(row.base_length, self._drafter.max_positions)
        if room <= 0:
            return DraftStatus.TOO_LONG, 0
        cached = self._cached.get(key)
        if row.start > (cached.committed if cached else 0):
            return DraftStatus.NEED_CONTEXT, 0
        if cached is None:
            full = self._owned[key[0]] == self._limits.rows_of_one
            if full or not self._make_room(key, 0, len(self) + 1 - self._limits.max_rows, now):
                return DraftStatus.BUSY, 0
            cached = self._open(key, row, depth, now)
        self._take_over(cached, row, depth, now, drafts, known)
        length = self._affordable(cached, row.base_length, min(row.length, room))
        if length is None:
            return DraftStatus.BUSY, 0
        if cached.cut(row.base_length + length):
            self._drafter.truncate(cached.id, row.base_length + length - 1)
        if not self._drafter.ledger.reserve(cached.id, positions_fed(row.base_length, length)):
            return DraftStatus.BUSY, 0
        return DraftStatus.OK, length

    def remove(self, key: Key) -> None:
        """Removes a sequence, unless that was done before."""
        cached = self._cached.pop(key, None)
        if cached is not None:
            self._drafter.free(cached.id)
            self._owned[key[0]] -= 1
            if not self._owned[key[0]]:
                del self._owned[key[0]]

    def check(self) -> None:
        """Raises AssertionError unless the cache, the drafter and the rows agree."""
        self._drafter.check()
        held = {one.id: one for one in self._cached.values()}
        assert sorted(held) == sorted(self._drafter.ledger.sequences), "the ledger knows other sequences"
        assert len(self) <= self._limits.max_rows
        assert self._owned == Counter(key[0] for key in self._cached), "somebody's sequences are miscounted"
        for one in held.values():
            one.check()
            assert self._drafter.written(one.id) <= len(one.tokens), "KV beyond the known tokens"
        for row in self._rows:
            assert held.get(row.cached.id) is row.cached, "a row of nothing"
            assert not row.is_done or (row.priority is Priority.CONTEXT and self.missing(row.cached) > 0), (
                "a row is done"
            )
            fed = len(row.cached.tokens) - (row.priority is Priority.CONTEXT)
            assert fed <= self._drafter.ledger.capacity(row.cached.id), "a row without pages"

    def _open(self, key: Key, row: DraftRow, depth: int, now: float) -> CachedTokens:
        self._last_id += 1
        self._drafter.open(self._last_id)
        cached = self._cached[key] = CachedTokens(key, self._last_id, depth, row.sampling, now)
        self._owned[key[0]] += 1
        return cached

    def _take_over(
        self,
        cached: CachedTokens,
        row: DraftRow,
        depth: int,
        now: float,
        drafts: Sequence[int],
        known: Sequence[Pick],
    ) -> None:
        kept = cached.reconcile(row.start, row.tokens, drafts)
        self._drafter.truncate(cached.id, min(kept, len(cached.tokens) - 1))
        del cached.keys[min(kept, cached.committed - 1) // self._drafter.ledger.page_size :]
        if (cached.depth, cached.sampling) != (depth, row.sampling):
            cached.picks.clear()  # none of them would be drafted now
        cached.explain(known)
        cached.depth, cached.sampling, cached.last_used = depth, row.sampling, now
        self.adopt(cached)

    def _affordable(self, cached: CachedTokens, base_length: int, length: int) -> int | None:
        """How many of `length` tokens have pages behind the base; None: the base has none."""
        ledger = self._drafter.ledger
        wanted = ledger.missing(cached.id, positions_fed(base_length, length))
        self._make_room(cached.key, wanted - ledger.num_free, 0, cached.last_used)
        room = draft_room(base_length, ledger.capacity(cached.id) + ledger.num_free * ledger.page_size)
        return min(length, room) if room > 0 else None

    def _make_room(self, key: Key, pages_short: int, rows_short: int, now: float) -> bool:
        """Evicts other sequences, idle ones first. If that does not make enough room, evicts none and returns False."""
        chosen: list[CachedTokens] = []
        for victim in chain(self._idle(key, now), self._beyond_share(key, pages_short, now)):
            if self._num_freed(chosen) >= pages_short and len(chosen) >= rows_short:
                break
            chosen.append(victim)
        if self._num_freed(chosen) < pages_short or len(chosen) < rows_short:
            return False
        self.num_evicted += len(chosen)
        for victim in chosen:
            self._forget(victim.key)
        return True

    def _is_idle(self, cached: CachedTokens, now: float) -> bool:
        return self._rows.of(cached) is None and now - cached.last_used >= self._limits.idle_s

    def _idle(self, key: Key, now: float) -> list[CachedTokens]:
        """All other sequences that are idle, the longest unused first."""
        idle = (cached for cached in self._cached.values() if cached.key != key and self._is_idle(cached, now))
        return sorted(idle, key=attrgetter("last_used"))

    def _beyond_share(self, key: Key, pages_short: int, now: float) -> Iterator[CachedTokens]:
        """If this target holds less than an equal share: sequences that nobody waits for, of targets that hold more.
        Their idle ones go first.
        """
        targets = self._owned.keys() | {key[0]}
        page_share = self._drafter.ledger.num_pages // len(targets)
        row_share = self._limits.max_rows // len(targets)
        held = self._held(key[0])
        if self._num_pages(held) + pages_short > page_share:
            return
        if len(held) + (key not in self._cached) > row_share:
            return
        for target in targets - {key[0]}:
            held = self._held(target)
            for cached in sorted(held, key=lambda cached: (not self._is_idle(cached, now), cached.last_used)):
                row = self._rows.of(cached)
                if len(held) <= row_share and self._num_pages(held) <= page_share:
                    break
                if row is None or row.priority is not Priority.DRAFT:
                    held.remove(cached)
                    if not self._is_idle(cached, now):
                        yield cached

    def _held(self, target: str) -> list[CachedTokens]:
        return [cached for cached in self._cached.values() if cached.key[0] == target]

    def _num_pages(self, held: Sequence[CachedTokens]) -> int:
        """How many pages these hold together."""
        return self._drafter.ledger.num_held(cached.id for cached in held)

    def _num_freed(self, chosen: Sequence[CachedTokens]) -> int:
        """How many pages would be free without these."""
        return self._drafter.ledger.num_freed(cached.id for cached in chosen)
