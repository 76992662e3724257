"""KV tensors over a page ledger: one pair per layer, written and read through slots, never moved."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import DecoderConfig


class PagedKV:
    """keys[layer], values[layer]: [num_slots, num_kv_heads, head_dim]."""

    def __init__(self, config: DecoderConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (num_slots, config.num_kv_heads, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots: [num_tokens]; keys, values: [num_tokens, num_kv_heads, head_dim]."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)


def bytes_per_slot(config: DecoderConfig, dtype: torch.dtype) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
