"""The page ledger: which slots of the KV tensors belong to which sequence. Integers only, no tensors.

A sequence holds pages and finds a position at `slots(sequence)[position]`, so rollback only shortens the sequence and
moves nothing. A fork shares the slots of its trunk below the fork point and owns only its tail. Pages have reference
counts, so trunk and branches may be freed in any order.

A full page whose positions will not change may be kept under a key: sequences with the same beginning adopt it. Kept
pages that nobody holds count as free; the one that was let go first is taken first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Table:
    pages: list[int]  # pages that this sequence references
    slots: Slots  # position -> slot, for all reserved positions
    num_shared: int = 0  # the first so many pages are its trunk's; it may write to the others
    trunk_length: int = 0


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
        self._idle: dict[int, None] = {}  # kept pages that nobody holds, in the order in which they were let go

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

    def adopt(self, sequence: int, keys: Iterable[bytes]) -> int:
        """Gives an empty sequence the pages kept under these keys, up to the first that is not there. Returns how many
        positions, which it must not write.
        """
        pages = list(map(self._kept.__getitem__, takewhile(self._kept.__contains__, keys)))
        for page in pages:
            self._references[page] += 1
            self._idle.pop(page, None)
        table = self._tables[sequence]
        table.pages += pages
        table.slots = np.concatenate([table.slots, self._page_slots(pages)])
        return len(pages) * self.page_size

    def swap(self, sequence: int, index: int, key: bytes) -> bool:
        """Puts the page kept under this key in the place of one of the sequence's own. Returns whether there is one."""
        page, table = self._kept.get(key), self._tables[sequence]
        if page is None:
            return False
        self._references[page] += 1
        self._idle.pop(page, None)
        self._release(table.pages[index])
        table.pages[index] = page
        table.slots = table.slots.copy()
        table.slots[index * self.page_size : (index + 1) * self.page_size] = self._page_slots([page])
        return True

    def keep(self, sequence: int, index: int, key: bytes) -> None:
        """Others may adopt this page of a sequence, unless there is one with its key. Nobody writes to it any more."""
        page = self._tables[sequence].pages[index]
        if key not in self._kept and page not in self._keys:
            self._kept[key], self._keys[page] = page, key

    def forget(self) -> None:
        """Nothing is kept any more; who holds a page goes on holding it."""
        self._free += self._idle
        self._idle.clear()
        self._kept.clear()
        self._keys.clear()

    def truncate(self, sequence: int, length: int) -> None:
        """Releases the sequence's own pages that lie entirely at or beyond `length`."""
        table = self._tables[sequence]
        if length < table.trunk_length:
            raise ValueError(f"cannot cut branch {sequence} to {length}, inside its trunk of {table.trunk_length}")
        keep = -(-(length - table.trunk_length) // self.page_size)
        table.slots = table.slots[: table.trunk_length + keep * self.page_size]
        for page in table.pages[table.num_shared + keep :]:
            self._release(page)
        del table.pages[table.num_shared + keep :]

    def fork(self, parent: int, child: int, length: int) -> None:
        """Opens `child` with the first `length` positions of `parent`, which it shares; its tail is its own."""
        trunk = self._tables[parent]
        if length > len(trunk.slots):
            raise ValueError(f"cannot fork sequence {parent} at {length}: {len(trunk.slots)} positions reserved")
        self.open(child)
        slots = trunk.slots[:length].copy()
        shared = np.unique(slots // self.page_size).tolist()
        for page in shared:
            self._references[page] += 1
        self._tables[child] = _Table(shared, slots, len(shared), length)

    def free(self, sequence: int) -> None:
        for page in reversed(self._tables.pop(sequence).pages):  # a beginning is of use without its end
            self._release(page)

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
