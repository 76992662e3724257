"""How far each part of the drafter lags behind a sequence, and what it costs to have a rule draft for it none the less.

A token that was drafted at a shallow exit has no KV in the layers below it. When a deeper rule drafts, these layers
first run all that they missed (S2D section 3): for a batch in mid-text that takes as long as several rounds, at the
beginning of texts it has to be done for any rule. A rule is therefore looked at where that is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from protocol.plan import SequenceView
from router.costs import CostCurves
from router.predict import SETTLED

MANY = 256  # tokens that catching up is priced by


class Lags:
    """Of one target's sequences, as far as its own plans tell. exits: of the drafter, ascending."""

    def __init__(self, curves: CostCurves, exits: Sequence[int]) -> None:
        self._curves, self._exits = curves, tuple(exits)
        self._marks: dict[int, list[int]] = {}  # by sequence: tokens that each segment of layers has run
        self._known: dict[int, list[float]] = {}  # by rows: rates

    def drafted(self, sequences: Sequence[SequenceView], exit_: int) -> None:
        """Layers up to this exit have seen all of these sequences."""
        for sequence in sequences:
            marks = self._marks.setdefault(sequence.id, [0] * len(self._exits))
            for segment, end in enumerate(self._exits):
                if end <= exit_:
                    marks[segment] = sequence.num_tokens

    def catch_up_ms(self, sequences: Sequence[SequenceView]) -> list[float]:
        """By exit: for all of these together, before a rule that ends there can draft for them."""
        num_rows, total, found = len(sequences), 0.0, []
        for segment, rate in enumerate(self._rates(num_rows)):
            missing = sum(self._missing(sequence, segment) for sequence in sequences) / num_rows
            total += rate * missing if missing > SETTLED else 0.0
            found.append(total)
        return found

    def keep(self, sequences: Sequence[SequenceView]) -> None:
        """Forget those that are not among these, once they are many: lanes take turns."""
        if len(self._marks) > 2 * len(sequences) + 8:
            alive = {sequence.id for sequence in sequences}
            self._marks = {number: marks for number, marks in self._marks.items() if number in alive}

    def leave(self) -> None:
        self._marks.clear()

    def _missing(self, sequence: SequenceView, segment: int) -> int:
        marks = self._marks.get(sequence.id)
        run = marks[segment] if marks else 0
        return max(sequence.num_unseen, sequence.num_tokens - run)

    def _rates(self, num_rows: int) -> list[float]:
        """By segment of layers: ms for a token of each row."""
        if num_rows not in self._known:
            ends = [self._curves.catch_up_ms(num_rows, exit_, MANY) / MANY for exit_ in self._exits]
            self._known[num_rows] = [max(end - above, 0.0) for above, end in pairwise([0.0, *ends])]
        return self._known[num_rows]
