"""The page ledger: which slots of the KV tensors belong to which sequence. Integers only, no tensors.

A sequence holds pages and finds a position at `slots(sequence)[position]`, so rollback only shortens the sequence and
moves nothing.

A full page whose positions will not change may be kept under a key: sequences with the same beginning adopt it, and it
counts how many hold it. A kept page that no sequence holds counts as free; of these the one that was released first is
reused first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, takewhile

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Table:
    pages: list[int]  # pages that this sequence references
    slots: Slots  # position -> slot, for all reserved positions


class PageLedger:
    """Allocates the pages of the KV tensors to sequences."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"{num_pages=} and {page_size=} must be at least 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._tables: dict[int, _Table] = {}
        self._kept: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}  # of kept pages
        self._idle: dict[int, None] = {}  # kept pages that no sequence holds, in the order of release

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(self._tables)

    def capacity(self, sequence: int) -> int:
        """The number of positions that have a slot."""
        return len(self._tables[sequence].slots)

    def slots(self, sequence: int) -> Slots:
        """Shape [capacity], int64. Do not write to it."""
        return self._tables[sequence].slots

    def open(self, sequence: int) -> None:
        if sequence in self._tables:
            raise ValueError(f"sequence {sequence} is open already")
        self._tables[sequence] = _Table([], np.empty(0, np.int64))

    def missing(self, sequence: int, length: int) -> int:
        """The number of pages that `reserve` would take."""
        short = length - self.capacity(sequence)
        return max(0, -(-short // self.page_size))

    def reserve(self, sequence: int, length: int) -> bool:
        """Gives every position below `length` a slot. Returns False and changes nothing if there are too few pages."""
        needed = self.missing(sequence, length)
        if needed > self.num_free:
            return False
        if needed:
            taken = [self._take() for _ in range(needed)]
            table = self._tables[sequence]
            table.pages += taken
            table.slots = np.concatenate([table.slots, self._page_slots(taken)])
        return True

    def kept(self, keys: Iterable[bytes]) -> list[int]:
        """The pages kept under these keys, up to the first missing key."""
        return list(map(self._kept.__getitem__, takewhile(self._kept.__contains__, keys)))

    def adopt(self, sequence: int, index: int, keys: Iterable[bytes]) -> int:
        """Replaces the sequence's own pages from `index` on by the pages kept under these keys, up to the first missing
        key. Adds them if it has none there. Returns how many; the sequence must not write to them.
        """
        pages, table = self.kept(keys), self._tables[sequence]
        assert index <= len(table.pages), "it has no such page"
        if pages:
            for page in pages:
                self._references[page] += 1
                self._idle.pop(page, None)
            for page in table.pages[index : index + len(pages)]:
                self._release(page)
            table.pages[index : index + len(pages)] = pages
            before, behind = index * self.page_size, (index + len(pages)) * self.page_size
            table.slots = np.concatenate([table.slots[:before], self._page_slots(pages), table.slots[behind:]])
        return len(pages)

    def keep(self, sequence: int, index: int, key: bytes) -> int | None:
        """Keeps this page of a sequence for others to adopt; it is not written any more. Returns the page; None if
        another is kept under this key.
        """
        page = self._tables[sequence].pages[index]
        if key not in self._kept and page not in self._keys:
            self._kept[key], self._keys[page] = page, key
        return page if self._kept.get(key) == page else None

    def forget(self) -> None:
        """Keeps no page any more. Sequences go on holding theirs."""
        self._free += self._idle
        self._idle.clear()
        self._kept.clear()
        self._keys.clear()

    def truncate(self, sequence: int, length: int) -> int:
        """Releases the sequence's pages that lie entirely at or beyond `length`, and a kept page that would be cut,
        since other tokens may come there. Returns the length that is left.
        """
        table = self._tables[sequence]
        whole, cut = divmod(length, self.page_size)
        if cut and whole < len(table.pages) and table.pages[whole] in self._keys:
            length, cut = length - cut, 0
        keep = whole + bool(cut)
        table.slots = table.slots[: keep * self.page_size]
        for page in table.pages[keep:]:
            self._release(page)
        del table.pages[keep:]
        return length

    def free(self, sequence: int) -> None:
        for page in reversed(self._tables.pop(sequence).pages):  # a beginning is of use without its end
            self._release(page)

    def num_held(self, sequences: Iterable[int]) -> int:
        """How many pages these hold together."""
        return len(self._counted(sequences))

    def num_freed(self, sequences: Iterable[int]) -> int:
        """How many pages no other sequence holds."""
        return sum(count == self._references[page] for page, count in self._counted(sequences).items())

    def _counted(self, sequences: Iterable[int]) -> Counter[int]:
        return Counter(chain.from_iterable(self._tables[sequence].pages for sequence in sequences))

    def check(self) -> None:
        """Raises AssertionError unless reference counts, tables and free list agree."""
        held = [0] * self.num_pages
        for table in self._tables.values():
            assert len(set(table.pages)) == len(table.pages), f"a sequence holds a page twice: {table.pages}"
            assert set(table.slots // self.page_size) <= set(table.pages), "a slot lies outside the held pages"
            for page in table.pages:
                held[page] += 1
        assert held == self._references, "reference counts do not match the tables"
        free = [*self._free, *self._idle]
        assert len(set(free)) == len(free), "a page is free twice"
        assert {page: key for key, page in self._kept.items()} == self._keys, "a page is kept under another key"
        assert set(self._idle) <= set(self._keys), "an idle page is not kept"
        assert not set(self._free) & set(self._keys), "a kept page lies among the empty ones"
        assert sorted(free) == [p for p, n in enumerate(held) if n == 0], "free list and tables disagree"

    def _page_slots(self, pages: list[int]) -> Slots:
        first = np.asarray(pages, np.int64)[:, None] * self.page_size
        return (first + np.arange(self.page_size)).reshape(-1)

    def _take(self) -> int:
        """A page for one sequence."""
        if self._free:
            page = self._free.pop()
        else:
            page = next(iter(self._idle))
            del self._idle[page], self._kept[self._keys.pop(page)]
        self._references[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page]:
            return
        if page in self._keys:
            self._idle[page] = None
        else:
            self._free.append(page)
