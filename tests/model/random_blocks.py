"""Random matrices in every block format, and a tiny llama made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from torch import Tensor

from model.batch import CPU
from model.blocks import BlockFormat, Blocks
from model.config import DecoderConfig, Rope
from model.decoder import LayerWeights, Linear
from model.quantized import Int8Rows, Matrix, QuantizedMatrix

# Where the halves lie in a block.
HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q5_0": (0,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
FORMATS = ("int8", *HALVES)
BLOCK_SIZES = {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] for name in HALVES}
# The spread of weights in units of a block's scale.
SPREAD = {
    "Q8_0": 74,
    "Q4_0": 5,
    "Q4_1": 5,
    "Q5_0": 9,
    "Q5_1": 9,
    "Q4_K": 300,
    "Q5_K": 600,
    "Q6_K": 1500,
}


def random_blocks(name: str, rows: int, columns: int, rng: np.random.Generator) -> Blocks | Int8Rows:
    """Weights of every bit pattern; their products with unit inputs are of order 1."""
    if name == "int8":
        return Int8Rows.of(torch.from_numpy(rng.normal(size=(rows, columns)) * columns**-0.5))
    size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    data = rng.integers(0, 256, (rows, columns // size, num_bytes), np.uint8)
    for place in HALVES[name]:
        scale = (rng.normal(size=(rows, columns // size, 1)) / SPREAD[name] * columns**-0.5).astype(np.float16)
        data[:, :, place : place + 2] = scale.view(np.uint8)
    return Blocks(BlockFormat(name), (rows, columns), data.reshape(rows, -1))


@dataclass(frozen=True)
class RandomWeights:
    """The model.decoder.StoredWeights of CONFIG. formats: of q, k, v, out, gate, up, down, and the embedding."""

    formats: tuple[str, ...]
    tied: bool = True
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    def embedding(self) -> Matrix:
        return self._matrix(7, (self.formats[7], CONFIG.vocab_size, 256))

    def head(self) -> Matrix | None:
        return None if self.tied else self._matrix(8, (self.formats[6], CONFIG.vocab_size, 256))

    def norm(self) -> Tensor:
        return torch.ones(256)

    def layers(self) -> Iterator[LayerWeights]:
        q, k, v, out, gate, up, down, _ = self.formats
        bias = torch.linspace(-0.5, 0.5, 512)
        for layer in range(10, 10 * (CONFIG.num_layers + 1), 10):
            yield LayerWeights(
                torch.ones(256),
                Linear(self._matrix(layer, (q, 256, 256), (k, 128, 256), (v, 128, 256)), bias),
                None,
                Linear(self._matrix(layer + 1, (out, 256, 256)), None),
                None,
                torch.ones(256),
                Linear(self._matrix(layer + 2, (gate, 512, 256), (up, 512, 256)), None),
                Linear(self._matrix(layer + 3, (down, 256, 512)), None),
                None,
            )

    def _matrix(self, seed: int, *parts: tuple[str, int, int]) -> QuantizedMatrix:
        rng = np.random.default_rng(seed)
        return QuantizedMatrix(tuple(random_blocks(name, rows, columns, rng) for name, rows, columns in parts))


CONFIG = DecoderConfig(
    family="llama",
    vocab_size=150,
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_positions=256,
    eos_token_ids=(2,),
    bos_token_id=1,
    pad_token_id=0,
    activation="silu",
    norm_eps=1e-5,
    query_scale=64**-0.5,
    windows=(None,) * 3,
    ropes=(Rope(tuple(1e-4 ** (i / 32) for i in range(32))),) * 3,
    qkv_bias=True,
)
