"""The weights of any checkpoint, rounded to int8 by output channel as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from model.decoder import LayerWeights, Linear, StoredWeights
from model.quantized import Int8Rows, Matrix, QuantizedMatrix


class Int8Weights:
    """A model.decoder.StoredWeights whose matrices are Int8Rows, except those that are stored quantized."""

    def __init__(self, stored: StoredWeights) -> None:
        self.stored = stored
        self.dtype, self.device = stored.dtype, stored.device

    def embedding(self) -> Matrix:
        return _rounded(self.stored.embedding())

    def head(self) -> Matrix | None:
        head = self.stored.head()
        return None if head is None else _rounded(head)

    def norm(self) -> Tensor:
        return self.stored.norm()

    def layers(self) -> Iterator[LayerWeights]:
        return map(_rounded_layer, self.stored.layers())


def _rounded(matrix: Matrix) -> Matrix:
    return matrix if isinstance(matrix, QuantizedMatrix) else QuantizedMatrix((Int8Rows.of(matrix),))


def _rounded_layer(layer: LayerWeights) -> LayerWeights:
    qkv, out, gate_up, down = (
        Linear(_rounded(own.weight), own.bias) for own in (layer.qkv, layer.out, layer.gate_up, layer.down)
    )
    return replace(layer, qkv=qkv, out=out, gate_up=gate_up, down=down)
