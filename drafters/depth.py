"""Depth-lazy KV as integers: how far each layer segment of one sequence has come.

Exits d1 < d2 < ... cut the layers into segments [0, d1), [d1, d2), ... A token that leaves at d1 has no KV in
the deeper segments. marks[i] counts the positions whose KV exists in segment i; what enters a segment has left
the one above it, so marks never increase with depth. The hidden states that positions [marks[i + 1], marks[i])
had on leaving segment i are kept at the same slots as their KV: when a deeper pass is wanted, these positions
ride along in it and nothing is computed twice (S2D section 3, `held[d]` in its decoding loop).

Rollback is a smaller length: truncating the marks drops tokens, KV and kept hidden states together.

A page that several sequences hold (drafters/shared.py) has watermarks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Watermarks:
    """marks: one per segment, shallow to deep, not increasing."""

    marks: tuple[int, ...]

    @classmethod
    def none(cls, num_segments: int) -> Watermarks:
        return cls((0,) * num_segments)

    def missing(self, segment: int, length: int) -> range:
        """The positions that `segment` must run to reach `length`: new ones, and those that ride along."""
        return range(self.marks[segment], max(self.marks[segment], length))

    def advance(self, segment: int, length: int) -> Watermarks:
        """The watermarks after `segment` ran its missing positions up to `length`."""
        assert length <= self.marks[segment - 1] or segment == 0, "a segment ran ahead of the one above it"
        assert length >= self.marks[segment], "advancing cannot take positions back"
        return Watermarks((*self.marks[:segment], length, *self.marks[segment + 1 :]))

    def truncate(self, length: int) -> Watermarks:
        """The watermarks without the positions from `length` on: a rejection."""
        return Watermarks(tuple(min(mark, length) for mark in self.marks))

    def within(self, start: int, end: int) -> Watermarks:
        """The watermarks of the positions [start, end) alone."""
        return Watermarks(tuple(min(max(mark, start), end) for mark in self.marks))

    def deepest(self, other: Watermarks) -> Watermarks:
        """The watermarks of two sequences over the same KV: what either has run counts as run."""
        return Watermarks(tuple(map(max, self.marks, other.marks)))

    def differ_from(self, other: Watermarks) -> int:
        """The first position at which two watermarks differ."""
        pairs = zip(self.marks, other.marks, strict=True)
        return min((min(own, their) for own, their in pairs if own != their), default=self.marks[0])

    def with_page(self, start: int, page: Watermarks) -> Watermarks | None:
        """The watermarks with a page from `start` on that others have read as far as `page` says. None if that is less
        than is known, or deeper than the positions before: states that flowed on through a boundary were not kept
        there.
        """
        known = self.within(start, page.marks[0])
        pairs = list(zip(self.marks, page.marks, strict=True))
        if known.deepest(page) != page or any(own < start < their for own, their in pairs):
            return None
        return Watermarks(tuple(own if own < start else max(own, their) for own, their in pairs))

    def check(self) -> None:
        assert list(self.marks) == sorted(self.marks, reverse=True), f"a deeper segment is ahead: {self.marks}"
        assert min(self.marks) >= 0, f"a negative watermark: {self.marks}"
