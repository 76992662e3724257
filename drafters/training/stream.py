"""A token stream, and which rows of it a training step sees.

Documents lie end to end as <bos> text <eos>. Each epoch cuts the stream into rows at its own offset
and goes through them in its own order; both follow from (seed, epoch), so that a step number alone
says which rows belong to it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.uint32]


def join_documents(documents: Iterable[list[int]], bos: int | None, eos: int | None) -> Tokens:
    """One flat stream [tokens] of all documents between their marks."""
    flat: list[int] = []
    for document in documents:
        flat += [] if bos is None else [bos]
        flat += document
        flat += [] if eos is None else [eos]
    return np.asarray(flat, dtype=np.uint32)


@dataclass(frozen=True)
class RowSampler:
    """Rows of `length` tokens out of a stream of `size`, `batch` to a step."""

    size: int
    length: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.per_epoch < 1:
            raise ValueError(
                f"the corpus has {self.size} tokens, fewer than one row of {self.length}: "
                "give more text or a smaller sequence_length"
            )

    @property
    def per_epoch(self) -> int:
        return self.size // self.length - 1

    def starts(self, step: int) -> list[int]:
        """Offsets into the stream of the rows of `step`."""
        first = step * self.batch
        return [self._start(index) for index in range(first, first + self.batch)]

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.per_epoch)
        rng = np.random.default_rng((self.seed, epoch))
        offset = int(rng.integers(self.length))
        return offset + self.length * int(rng.permutation(self.per_epoch)[place])


def cut(tokens: Tokens, starts: Iterable[int], length: int) -> Tensor:
    """Rows [row, length] of int64 token ids."""
    rows = np.stack([tokens[start : start + length] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))
