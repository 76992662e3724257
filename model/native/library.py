"""ctypes bindings of the compiled kernels. The structures are those of native.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache

import torch

from model.cores import usable_cores
from model.native.compiler import library_path


class LinearSpec(Structure):
    """quantized: an array of StripSpec; null where the strips are dense."""

    _fields_ = (
        ("strips", c_void_p),
        ("bias", c_void_p),
        ("quantized", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
    )


class LayerSpec(Structure):
    _fields_ = (
        ("attention_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("attention_post_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("mlp_post_norm", c_void_p),
        ("qkv", LinearSpec),
        ("out", LinearSpec),
        ("gate_up", LinearSpec),
        ("down", LinearSpec),
        ("window", c_int32),
    )


class ModelSpec(Structure):
    _fields_ = (
        *(
            (name, c_int32)
            for name in ("head_size", "hidden", "inner", "layers", "heads", "kv_heads", "head_dim", "dim")
        ),
        ("activation", c_int32),
        ("is_bf16", c_int32),
        *((name, c_float) for name in ("norm_eps", "query_scale", "embedding_scale")),
        ("attention_softcap", c_float),
        ("final_softcap", c_float),
        ("layer", POINTER(LayerSpec)),
        ("norm", c_void_p),
        ("head", LinearSpec),
        ("embedding", c_void_p),
        ("embedding_blocks", c_void_p),
        ("token_ids", c_void_p),
    )


class BatchSpec(Structure):
    _fields_ = (
        ("slots", c_void_p),
        ("totals", c_void_p),
        ("num_new", c_void_p),
        ("num_rows", c_int32),
        ("num_tokens", c_int32),
        ("num_slots", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("angles", c_void_p),
    )


_CALLS: dict[str, tuple[object, list[object]]] = {
    "dp_features": (c_char_p, []),
    "dp_pool": (c_void_p, [c_int]),
    "dp_model": (c_void_p, [POINTER(ModelSpec), c_void_p]),
    "dp_model_free": (None, [c_void_p]),
    "dp_embed": (None, [c_void_p, c_void_p, c_int, c_void_p]),
    "dp_run": (None, [c_void_p, c_void_p, POINTER(BatchSpec), c_int, c_int]),
    "dp_logits": (None, [c_void_p, c_void_p, c_void_p, c_int, c_void_p]),
    "dp_step": (
        None,
        [
            *(c_void_p, c_void_p, POINTER(BatchSpec), c_void_p, c_void_p, c_int),
            *(c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p, c_void_p),
        ],
    ),
    "dp_roll": (None, [c_void_p, POINTER(BatchSpec), c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p]),
    "dp_read": (c_uint64, [c_void_p, c_void_p, c_uint64]),
    "dp_pick": (None, [c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p, c_int, c_void_p]),
    "dp_strip_bytes": (c_uint64, [c_int, c_int]),
    "dp_pack": (None, [c_void_p, c_int, c_void_p, c_uint64, c_int, c_int, c_void_p, c_uint64]),
    "dp_product": (None, [c_void_p, POINTER(LinearSpec), c_void_p, c_int, c_void_p]),
}


@cache
def library() -> ctypes.CDLL:
    """The library, compiled and loaded once per process. Raises model.native.compiler.CompilerError."""
    loaded = ctypes.CDLL(str(library_path()))
    for name, (result, arguments) in _CALLS.items():
        call = getattr(loaded, name)
        call.restype, call.argtypes = result, arguments
    return loaded


@cache
def thread_pool(num_threads: int) -> int:
    """A thread pool of this size, shared by all models of the process, because two pools would compete for cores."""
    return int(library().dp_pool(num_threads))


def num_threads() -> int:
    return torch.get_num_threads()


def default_threads() -> int:
    """torch's default, one per physical core, limited to the cores that this process may use."""
    return min(torch.get_num_threads(), usable_cores())


def features() -> str:
    """The instruction set that the kernels were compiled for."""
    return str(library().dp_features().decode())


def addresses(values: Sequence[int]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(values))(*values)
