"""Ragged attention over scattered slots against one dense softmax a query, over random schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.attention import attend
from model.batch import LONG_ROW, BatchRow, RaggedBatch, build_batch

DIM = 8


def dense_attention(
    query: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """One query at the last position. query: [heads, dim]; keys, values: [total, kv_heads, dim]."""
    first = 0 if window is None else max(0, len(keys) - window)
    keys, values = (kv[first:].repeat_interleave(len(query) // kv.shape[1], 1).double() for kv in (keys, values))
    scores = torch.einsum("hd,thd->ht", query.double(), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("ht,thd->hd", scores.softmax(1), values).float()


def random_batch(rng: np.random.Generator, num_slots: int) -> RaggedBatch:
    """Rows of 1 to 5 new tokens, and now and then a chunk, in random order over shuffled slots."""
    slots = rng.permutation(num_slots)
    rows = []
    for _ in range(rng.integers(1, 6)):
        num_new = int(rng.integers(LONG_ROW - 1, LONG_ROW + 8) if rng.random() < 0.25 else rng.integers(1, 6))
        total = num_new + int(rng.integers(0, 20)) * int(rng.integers(0, 2))
        rows.append(BatchRow(slots[:total], num_new))
        slots = slots[total:]
    return build_batch(rows)


@pytest.mark.parametrize("seed", range(60))
def test_attention_equals_dense_attention_of_each_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    keys, values = torch.randn(2, 400, kv_heads, DIM, generator=generator)
    batch = random_batch(rng, 400)
    query = torch.randn(batch.num_tokens, kv_heads * group, DIM, generator=generator)
    window = rng.choice(np.array([1, rng.integers(2, 30), 1000]))
    scale = float(rng.uniform(0.1, 1.0))
    for limits in ({"window": None, "softcap": None}, {"window": int(window), "softcap": [None, 1.5][seed % 2]}):
        output = attend(query, keys, values, batch, scale=scale, **limits)
        expected = torch.empty_like(output)
        for row, start in zip(batch.rows, batch.offsets, strict=False):
            for token in range(row.num_new):
                seen = torch.from_numpy(row.slots[: len(row.slots) - row.num_new + token + 1])
                expected[start + token] = dense_attention(
                    query[start + token], keys[seen], values[seen], scale=scale, **limits
                )
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_what_lies_in_other_slots_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 64, 2, DIM, generator=generator)
    batch = build_batch([BatchRow(np.arange(10, 20), 3), BatchRow(np.arange(30, 60), 1)])
    query = torch.randn(4, 4, DIM, generator=generator)
    before = attend(query, keys, values, batch, scale=1.0, window=None, softcap=None)
    for tensor in (keys, values):
        tensor[:10] = tensor[20:30] = tensor[60:] = float("nan")
    assert torch.equal(attend(query, keys, values, batch, scale=1.0, window=None, softcap=None), before)


def test_sequences_read_a_shared_beginning_in_place() -> None:
    """Two rows that share slots 0..9 and own different tails, as sequences that begin alike do."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 32, 1, DIM, generator=generator)
    tails = [np.array([20, 21]), np.array([25, 11, 30])]
    rows = [BatchRow(np.concatenate([np.arange(10), tail]), len(tail)) for tail in tails]
    query = torch.randn(5, 1, DIM, generator=generator)
    together = attend(query, keys, values, build_batch(rows), scale=1.0, window=None, softcap=None)
    alone = [
        attend(part, keys, values, build_batch([row]), scale=1.0, window=None, softcap=None)
        for part, row in zip(query.split_with_sizes([2, 3]), rows, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
