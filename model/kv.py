"""KV tensors over a page ledger: one pair per layer, written and read through slots, never moved."""

from __future__ import annotations

from ctypes import Array, c_void_p
from functools import cached_property

import torch
from torch import Tensor

from model.config import DecoderConfig

Addresses = Array[c_void_p]


class PagedKV:
    """keys[layer], values[layer]: zeros, in the layout of the decoder that made them; where nothing else is said
    [num_slots, num_kv_heads, head_dim].
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys = keys
        self.values = values

    @cached_property
    def arrays(self) -> tuple[Addresses, Addresses]:
        """Where every layer's keys and values lie."""
        return _addresses(self.keys), _addresses(self.values)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots: [num_tokens]; keys, values: [num_tokens, num_kv_heads, head_dim]."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)


def _addresses(tensors: list[Tensor]) -> Addresses:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def padded_dim(head_dim: int) -> int:
    """Of a head in the native kernels' KV: whole vectors of 32."""
    return -(-head_dim // 32) * 32


def bytes_per_slot(config: DecoderConfig, dtype: torch.dtype) -> int:
    """At most; a decoder that does not pad takes less when heads are no multiple of 32."""
    return 2 * config.num_layers * config.num_kv_heads * padded_dim(config.head_dim) * dtype.itemsize
