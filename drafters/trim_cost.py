"""Measures on this machine what the choice of a head's size depends on: drafted tokens and passes of the target.

All are measured in turn, again and again, a draft between two passes as in service; medians count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from model.batch import CPU, BatchRow, build_batch
from model.decoder import Decoder, LayerWeights, StoredWeights
from model.execution import build_decoder
from model.load import WeightFormat, load_decoder, open_weights
from model.quantized import Matrix
from model.rollout import Rollout
from protocol.request import GREEDY

CONTEXT = 256  # positions before what is timed, or as many as the model has
DRAFTED = 4  # tokens of a timed draft
WIDTHS = range(1, 10)  # tokens of the target's passes
WARM_UP = 2
SMALLEST = 2  # rows of a head that costs next to nothing

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """layers_ms: of a drafted token without the head. head_ms: of the head alone, by its rows. verify_ms: by width."""

    layers_ms: float
    head_ms: Mapping[int, float]
    verify_ms: tuple[float, ...]


class FirstTokens:
    """The StoredWeights of a model with the first tokens of its vocabulary only: any others would cost the same."""

    def __init__(self, stored: StoredWeights, size: int) -> None:
        self.dtype, self.device = stored.dtype, stored.device
        self._stored = stored
        self._size = size

    def embedding(self) -> Matrix:
        return self._first(self._stored.embedding())

    def head(self) -> Matrix | None:
        head = self._stored.head()
        return None if head is None else self._first(head)

    def norm(self) -> Tensor:
        return self._stored.norm()

    def layers(self) -> Iterator[LayerWeights]:
        return self._stored.layers()

    def _first(self, matrix: Matrix) -> Matrix:
        return matrix[: self._size] if isinstance(matrix, Tensor) else matrix.rows(0, self._size)


def measure(
    drafter: Path,
    depth: int,
    sizes: Sequence[int],
    target: Path,
    dtype: torch.dtype,
    weights: WeightFormat,
    repeat: int,
) -> MeasuredCosts:
    """depth: layers of the drafter. sizes: rows of its head. repeat: measured turns."""
    drafts = {size: _draft(_with_head(drafter, depth, size, dtype, weights)) for size in (SMALLEST, *sizes)}
    decoder = load_decoder(target, dtype=dtype, weights=weights)
    passes = [_pass(decoder, width) for width in WIDTHS]
    in_turn = [call for pair in zip_longest(passes, drafts.values()) for call in pair if call is not None]
    times = dict(zip(in_turn, timed(in_turn, repeat, time.perf_counter), strict=True))
    bare = times[drafts[SMALLEST]]
    heads = {
        size: max(0.0, median(own - none for own, none in zip(times[drafts[size]], bare, strict=True))) / DRAFTED
        for size in sizes
    }
    return MeasuredCosts(median(bare) / DRAFTED, heads, tuple(median(times[call]) for call in passes))


@torch.inference_mode()
def timed(calls: Sequence[Call], repeat: int, clock: Callable[[], float]) -> list[list[float]]:
    """Milliseconds of each call, turn by turn, behind turns that only warm up."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(WARM_UP + repeat):
        for call, own in zip(calls, taken, strict=True):
            began = clock()
            call()
            own.append(1e3 * (clock() - began))
    return [own[WARM_UP:] for own in taken]


def _with_head(folder: Path, depth: int, size: int, dtype: torch.dtype, weights: WeightFormat) -> Decoder:
    config, stored = open_weights(folder, dtype, CPU, depth, None, weights)
    return build_decoder(replace(config, vocab_size=size), FirstTokens(stored, size))


def _draft(decoder: Decoder) -> Call:
    """A draft of DRAFTED tokens, by one sequence."""
    start = _context(decoder, DRAFTED)
    slots = np.arange(start + DRAFTED)
    kv = decoder.new_kv(len(slots))
    rollout = Rollout(slots, start, [0], DRAFTED, GREEDY)
    return partial(decoder.roll_out, [rollout], kv, decoder.config.num_layers, None)


def _pass(decoder: Decoder, width: int) -> Call:
    """A pass of one sequence over `width` tokens, with a pick behind each."""
    total = _context(decoder, width) + width
    slots = np.arange(total)
    batch = build_batch([BatchRow(slots, width)], decoder.device)
    kv, positions = decoder.new_kv(total), range(total - width + 1, total + 1)
    return partial(decoder.step, [0] * width, batch, kv, range(width), [GREEDY] * width, positions)


def _context(decoder: Decoder, behind: int) -> int:
    return min(CONTEXT, decoder.config.max_positions - behind)
