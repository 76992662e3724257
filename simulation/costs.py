"""What passes take in virtual time, from the profiled curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from model.batch import RaggedBatch
from protocol.limits import MAX_LENGTH
from router.costs import CostCurves


def pass_ms(curves: CostCurves, batch: RaggedBatch) -> float:
    """A target's pass. A row that begins a text, or is longer than a draft, is a chunk of a prompt and adds what its
    tokens add to the prompt; all others are verified.
    """
    spans = [(len(row.slots) - row.num_new, len(row.slots)) for row in batch.rows]
    verified = [(start, stop) for start, stop in spans if start and stop - start <= 1 + MAX_LENGTH]
    prompts = [span for span in spans if span not in verified]
    ms = sum(curves.prefill_ms(stop) - curves.prefill_ms(start) for start, stop in prompts)
    if not verified:
        return ms + curves.prefill_ms(0)
    num_tokens = sum(stop - start for start, stop in verified)
    return ms + curves.verify_ms(len(verified), num_tokens, sum(start for start, _ in verified) / len(verified))


@dataclass(slots=True)
class PoolCharge:
    """What the passes of one draft replica take, summed up until it is taken. slower: times as long as profiled.

    Passes are priced layer group by layer group, a group being the layers between two exits: rows that leave early take
    no part in the later ones. The groups of one exit add up to its curve. The first token of a pass has its fixed cost.
    """

    curves: CostCurves
    slower: float = 1.0
    ms: float = 0.0
    _num_tokens: int = 0
    _known: dict[tuple[int, int, int, bool], float] = field(default_factory=dict)

    def __call__(self, start: int, stop: int, batch: RaggedBatch) -> None:
        self._num_tokens += start == 0
        size = len(batch.rows), batch.num_tokens, self._num_tokens == 1
        self.ms += self.slower * max(self._down_to_ms(stop, *size) - self._down_to_ms(start, *size), 0.0)

    def take(self) -> float:
        """The cost of the pass that has ended."""
        ms, self.ms, self._num_tokens = self.ms, 0.0, 0
        return ms

    def _down_to_ms(self, depth: int, num_rows: int, num_tokens: int, first: bool) -> float:
        key = depth, num_rows, num_tokens, first
        if depth and key not in self._known:
            one = self.curves.draft_ms(num_rows, depth, 1, num_tokens / num_rows)
            later = self.curves.draft_ms(num_rows, depth, 2) - 2 * self.curves.draft_ms(num_rows, depth, 1)
            self._known[key] = one if first else one + later
        return self._known[key] if depth else 0.0


def overheads(curves: CostCurves, max_rows: int) -> Sequence[float]:
    """Milliseconds of a round beside its passes, by decoding rows."""
    return [curves.overhead_ms(max(rows, 1)) for rows in range(max_rows + 1)]
