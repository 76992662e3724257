"""Pages of the draft cache that sequences with the same beginning share, and how far each was read. Integers only.

Every holder of such a page may read it deeper in place: committed tokens do not change, so all would write the same. A
page counts as read, segment by segment, as far as any holder has read it; a sequence that adopts it goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafters.depth import Watermarks
from model.pages import PageLedger


class SharedPages:
    def __init__(self) -> None:
        self._read: dict[int, Watermarks] = {}  # by page; void once the page is no longer kept
        self._told: dict[int, Watermarks] = {}  # by sequence: what others know of its pages

    def adopt(
        self, ledger: PageLedger, sequence: int, marks: Watermarks, keys: Sequence[bytes], start: int
    ) -> Watermarks:
        """Takes the pages with these keys, one key a page, from the page that holds `start` on, as long as they were
        read further than its own. Returns the new watermarks.
        """
        first = end = start // ledger.page_size
        for page in ledger.kept(keys[first:]):
            further = marks.with_page(end * ledger.page_size, self._read[page])
            if further is None:
                break
            marks, end = further, end + 1
        ledger.adopt(sequence, first, keys[first:end])
        return marks

    def keep(self, ledger: PageLedger, sequence: int, marks: Watermarks, keys: Sequence[bytes]) -> None:
        """Offers the sequence's pages with these keys to others, as far as they were read."""
        size = ledger.page_size
        marks = marks.truncate(len(keys) * size)
        told = self._told.get(sequence, Watermarks.none(len(marks.marks)))
        self._told[sequence] = marks
        for index in range(marks.differ_from(told) // size, marks.marks[0] // size):
            is_new = not ledger.kept(keys[index : index + 1])
            page = ledger.keep(sequence, index, keys[index])
            if page is not None:
                own = marks.within(index * size, (index + 1) * size)
                self._read[page] = own if is_new else own.deepest(self._read[page])

    def forget(self, sequence: int) -> None:
        self._told.pop(sequence, None)
