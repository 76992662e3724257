"""Pages of the draft cache that sequences with the same beginning share, and how far each was read. Integers only.

Whoever holds such a page may read it deeper in place: committed tokens do not change, so that all others would write
the same there. What it has been read to is the furthest that any of them has come, segment by segment, and whoever
adopts it goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafters.depth import Watermarks
from model.pages import PageLedger


class SharedPages:
    def __init__(self) -> None:
        self._read: dict[int, Watermarks] = {}  # by page; it means nothing once the page is no longer kept
        self._told: dict[int, Watermarks] = {}  # by sequence: of its pages, what others know

    def adopt(
        self, ledger: PageLedger, sequence: int, marks: Watermarks, keys: Sequence[bytes], start: int
    ) -> Watermarks:
        """Takes the pages under these keys, one key a page, from the one that holds `start` on, as long as they have
        been read further than its own. Returns the watermarks behind them.
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
        """Others may go on from what the sequence has read of its pages with these keys."""
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
