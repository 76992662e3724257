"""Attention of a ragged batch over paged KV, with torch's scaled_dot_product_attention.

For each group of rows, keys and values are gathered through their slots into a padded block and masked by position and
window. The outputs of real queries return to the flat list. Other implementations are compared with this one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.batch import RaggedBatch, RowGroup


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
    if len(batch.groups) == 1:
        return _attend_group(query, keys, values, batch.groups[0], scale, window, softcap)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in batch.groups:
        output.index_copy_(0, group.flat_index, _attend_group(query, keys, values, group, scale, window, softcap))
    return output


def _attend_group(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    group: RowGroup,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Returns [num_tokens of the group, heads, dim], in the order of group.flat_index."""
    block_query = query.index_select(0, group.query_index.view(-1)).view(*group.query_index.shape, *query.shape[1:])
    block_query = block_query.transpose(1, 2)
    block_keys, block_values = group.gather(keys, values)
    causal = group.is_causal(window) and softcap is None
    mask = None if causal else group.mask(window)
    if softcap is None:
        output = scaled_dot_product_attention(
            block_query, block_keys, block_values, mask, is_causal=causal, scale=scale, enable_gqa=True
        )
    else:
        output = _softcapped(block_query, block_keys, block_values, mask, scale, softcap)
    flat = output.transpose(1, 2).reshape(-1, *query.shape[1:])
    return flat.index_select(0, group.real_index) if group.is_padded else flat


def _softcapped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Attention with capped scores, as in transformers' eager Gemma2: cap, then mask, then softmax in float32.

    query: [rows, heads, new, dim]; keys, values: [rows, kv_heads, total, dim]; mask: [rows, 1, new, total].
    """
    rows, heads, new, dim = query.shape
    grouped = query.reshape(rows, keys.shape[1], -1, new, dim)
    scores = grouped @ keys[:, :, None].transpose(-1, -2) * scale
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values[:, :, None]).view(rows, heads, new, dim)
