"""Attention of a ragged batch over paged KV, with torch's scaled_dot_product_attention.

For each group of rows, keys and values are gathered through their slots into a padded block and masked by position and
window. Other implementations are compared with this one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.batch import RaggedBatch


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: RaggedBatch,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """query: [num_tokens, heads, dim]; keys, values: [num_slots, kv_heads, dim]. Returns [num_tokens, heads, dim].

    The keys and values of the batch must already be in their slots.
    """
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in batch.groups:
        block = (query[group.queries].transpose(1, 2), *group.gather(keys, values), group.mask(window))
        if softcap is None:
            attended = scaled_dot_product_attention(*block, scale=scale, enable_gqa=True)
        else:
            attended = _softcapped(*block, scale, softcap)
        output[group.queries] = attended.transpose(1, 2)  # what is padding repeats a query, and so its output
    return output


def _softcapped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention with capped scores, as in transformers' eager Gemma2: cap, then mask, then softmax in float32.

    query: [rows, heads, new, dim]; keys, values: [rows, kv_heads, total, dim]; mask: [rows, 1, new, total].
    """
    rows, heads, new, dim = query.shape
    grouped = query.reshape(rows, keys.shape[1], -1, new, dim)
    scores = grouped @ keys[:, :, None].transpose(-1, -2) * scale
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~mask[:, :, None], float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values[:, :, None]).view(rows, heads, new, dim)
