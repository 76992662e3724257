"""The floor under a decode step: reading the bytes of the weights once, and their matrix products alone.

No attention, norms, sampling or bookkeeping. The read is the fastest of our own kernel's and a few torch
reductions over a buffer of the same size in pages of the same kind, since none of them is the fastest on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from model.config import DecoderConfig
from model.eager import EagerDecoder
from model.execution import why_not_native
from model.load import tensor_shapes
from model.native.decoder import NativeDecoder
from model.native.library import library, num_threads, thread_pool
from model.native.memory import zeros
from targets.model import TargetModel

NUM_PASSES = 20


def weight_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Of the matrices that one step reads: all layers' and the head's."""
    shapes = tensor_shapes(config)
    untied = {} if config.tied_embeddings else {"model.embed_tokens.weight"}
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and name not in untied]
    return sum(rows * columns for rows, columns in matrices) * dtype.itemsize


def read_ms(num_bytes: int, passes: int = NUM_PASSES) -> float:
    """Of one read of so many bytes with torch's threads."""
    values = zeros((num_bytes // 64 * 8,), torch.float64).fill_(1.0)
    readers: list[Callable[[], object]] = [values.sum, values.view(torch.int64).max, values.view(torch.float32).amax]
    if why_not_native() is None:
        pool = thread_pool(num_threads())
        readers.append(lambda: library().dp_read(pool, values.data_ptr(), values.nbytes))
    return min(_median_ms(reader, passes) for reader in readers)


@torch.inference_mode()
def linear_pass_ms(model: TargetModel, width: int, passes: int = NUM_PASSES) -> float:
    """Of the matrix products of a pass over `width` tokens, with the kernels that the model itself runs on.

    Raises TypeError for a decoder whose products cannot be run alone.
    """
    decoder = model.decoder
    if isinstance(decoder, NativeDecoder):
        return _median_ms(lambda: decoder.linear_pass(width), passes)
    if isinstance(decoder, EagerDecoder):
        return _median_ms(lambda: _eager_pass(decoder, width), passes)
    raise TypeError(f"{type(decoder).__name__} has no pass of linear layers alone")


def _eager_pass(decoder: EagerDecoder, width: int) -> None:
    weights = decoder.weights
    hidden = torch.ones(width, decoder.config.hidden_size, dtype=decoder.dtype)
    for layer in weights.layers:
        heads = layer.qkv(hidden)[:, : layer.out.weight.shape[1]]
        layer.out(heads)
        inner = layer.gate_up(hidden)[:, : layer.down.weight.shape[1]]
        layer.down(inner)
    torch.nn.functional.linear(hidden, weights.head)


def _median_ms(call: Callable[[], object], passes: int) -> float:
    times = []
    for _ in range(passes + 2):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[2:])
