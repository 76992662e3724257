"""The KV tensors that the slots of a page ledger index: one pair per layer. Entries are never moved."""

from __future__ import annotations

from ctypes import Array, c_void_p
from functools import cached_property

import torch
from torch import Tensor

from model.config import DecoderConfig

Addresses = Array[c_void_p]


class PagedKV:
    """keys[layer] and values[layer], in the layout of the decoder that made them.

    The default layout is [num_slots, num_kv_heads, head_dim].
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys = keys
        self.values = values

    @cached_property
    def arrays(self) -> tuple[Addresses, Addresses]:
        """The addresses of every layer's keys and values."""
        return _addresses(self.keys), _addresses(self.values)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots: [num_tokens]; keys, values: [num_tokens, num_kv_heads, head_dim]."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)


def _addresses(tensors: list[Tensor]) -> Addresses:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def padded_dim(head_dim: int) -> int:
    """The padded size of a head in the native kernels' KV: a multiple of 32."""
    return -(-head_dim // 32) * 32


def bytes_per_slot(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Upper bound on the KV bytes of one position; less if the decoder does not pad heads to a multiple of 32."""
    return 2 * config.num_layers * config.num_kv_heads * padded_dim(config.head_dim) * dtype.itemsize
