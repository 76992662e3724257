"""From the lists of a command line to the cells that they span, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.cells import APART, CHOSEN, OURS, Cell
from bench.policies import FIXED

LENGTH_MODES = ("assisted", "lookup", "openvino-draft", "llamacpp-draft", "llamacpp-ngram")  # a cell a batch and length
PEERS = ("generate", "assisted", "lookup", "continuous", "openvino", "openvino-draft", "llamacpp", "llamacpp-ngram")
MODES = (*OURS, *PEERS, "llamacpp-draft", "url")
EVERY_SETTING = (FIXED, *(mode for mode in APART if mode != CHOSEN))  # one cell a depth and length
SINGLE = frozenset(("assisted", "lookup"))  # transformers speculates at batch 1 only


@dataclass(frozen=True, slots=True)
class Grid:
    """kept_full: prompts that wait beyond the batch, in batches; 0 leaves the cells of a full batch out."""

    modes: Sequence[str]
    batches: Sequence[int]
    depths: Sequence[int]
    lengths: Sequence[int]
    temperatures: Sequence[float] = (0.0,)
    categories: Sequence[str] = ("",)
    kept_full: int = 0

    def cells(self) -> list[Cell]:
        return [
            Cell(mode, batch, depth, length, temperature, queue, category)
            for category in self.categories
            for temperature in self.temperatures
            for batch in self.batches
            for queue in ((0, self.kept_full * batch) if self.kept_full else (0,))
            for mode in self.modes
            for depth, length in self._settings(mode, batch)
        ]

    def _settings(self, mode: str, batch: int) -> list[tuple[int | None, int]]:
        if mode in SINGLE and batch > 1:
            return []
        if mode in EVERY_SETTING:
            return [(depth, length) for depth in self.depths for length in self.lengths]
        return [(None, length) for length in self.lengths] if mode in LENGTH_MODES else [(None, 0)]
