"""Loads a Decoder from a checkpoint directory (model/checkpoint.py).

The names and shapes of tensors are checked against the config before any weight is read. Projections are fused while
reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from model.batch import CPU
from model.checkpoint import Checkpoint
from model.config import DecoderConfig, read_config
from model.decoder import Decoder, LayerWeights, Linear, StoredWeights
from model.execution import Execution, build_decoder
from model.int8 import Int8Weights
from model.native.memory import release_freed_memory
from model.quantized import Matrix, rows_of
from protocol.errors import ConfigError


class WeightFormat(StrEnum):
    """How matrices are kept. STORED: as in the file, GGUF's blocks packed. DENSE: in the model's dtype. INT8: by
    channel.
    """

    STORED = "stored"
    DENSE = "dense"
    INT8 = "int8"


Progress = Callable[[int, int], None]  # (loaded layers, all layers)

_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def load_decoder(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device = CPU,
    num_layers: int | None = None,
    execution: Execution = Execution.AUTO,
    progress: Progress | None = None,
    weights: WeightFormat = WeightFormat.STORED,
) -> Decoder:
    """Loads a decoder. num_layers: load only the first so many layers. Raises UnsupportedModel or ConfigError."""
    config, stored = open_weights(directory, dtype, device, num_layers, progress, weights)
    return build_decoder(config, stored, execution)


def open_weights(
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    num_layers: int | None,
    progress: Progress | None,
    weights: WeightFormat,
) -> tuple[DecoderConfig, StoredWeights]:
    """The config of a checkpoint's first layers and their weights, checked and not yet read. Raises as load_decoder."""
    full = read_config(directory)
    config = full if num_layers is None else full.first_layers(num_layers)
    stored = Stored(_checked(directory, full, dtype, device), config, progress, weights)
    return config, Int8Weights(stored) if weights is WeightFormat.INT8 else stored


def check_weights(directory: Path) -> None:
    """Raises UnsupportedModel or ConfigError where load_decoder would, but reads only the headers of files."""
    _checked(directory, read_config(directory), torch.float32, CPU)


def _checked(directory: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Checkpoint:
    checkpoint = Checkpoint(directory, dtype, device)
    shapes, whole = tensor_shapes(config), _whole_head(checkpoint, config)
    if whole is not None:
        del shapes[_HEAD]
    checkpoint.check(shapes, optional=frozenset({_HEAD} if config.tied_embeddings or whole == _HEAD else ()))
    return checkpoint


def _whole_head(checkpoint: Checkpoint, config: DecoderConfig) -> str | None:
    """The whole matrix that a trimmed head is an index into (model/trimmed.py), if it is stored."""
    stored = checkpoint.shapes.get(_HEAD)
    if not config.head_token_ids or (stored is not None and stored[0] != config.vocab_size):
        return None
    return _EMBEDDING if stored is None else _HEAD


class Stored:
    """The model.decoder.StoredWeights of a checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: DecoderConfig,
        progress: Progress | None,
        weights: WeightFormat,
    ) -> None:
        self.dtype = checkpoint.dtype
        self.device = checkpoint.device
        self._checkpoint = checkpoint
        self._config = config
        self._progress = progress
        self._matrix = checkpoint.read_as_stored if weights is WeightFormat.STORED else checkpoint.read

    def embedding(self) -> Matrix:
        return self._matrix(_EMBEDDING)

    def head(self) -> Matrix | None:
        """The head, or None if it is tied. Raises ConfigError if a tied head differs from the embedding."""
        if (whole := _whole_head(self._checkpoint, self._config)) is not None:
            return rows_of(self._matrix(whole), self._config.head_token_ids)
        if not self._config.tied_embeddings:
            return self._matrix(_HEAD)
        read = self._checkpoint.read
        if _HEAD in self._checkpoint and not torch.equal(read(_HEAD), read(_EMBEDDING)):
            raise ConfigError(
                f"{self._checkpoint.directory} ties its embeddings but stores an {_HEAD} that differs from them"
            )
        return None

    def norm(self) -> Tensor:
        return _read_norm(self._checkpoint, self._config, _NORM)

    def layers(self) -> Iterator[LayerWeights]:
        for layer in range(self._config.num_layers):
            yield _read_layer(self._checkpoint, self._matrix, self._config, layer)
            release_freed_memory()
            if self._progress is not None:
                self._progress(layer + 1, self._config.num_layers)


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config must hold."""
    shapes: dict[str, tuple[int, ...]] = {
        _EMBEDDING: (config.vocab_size, config.hidden_size),
        _NORM: (config.hidden_size,),
    }
    if not config.tied_embeddings:
        shapes[_HEAD] = (config.head_size, config.hidden_size)
    layer_shapes = _layer_shapes(config)
    for layer in range(config.num_layers):
        shapes |= {_name(layer, suffix): shape for suffix, shape in layer_shapes.items()}
    return shapes


def _layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = (
        ("self_attn.q_proj", q, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q, config.out_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    )
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (out, size) for name, out, size, _ in linears}
    shapes |= {f"{name}.bias": (out,) for name, out, _, bias in linears if bias}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes |= {f"{name}.weight": (hidden,) for name in norms}
    if config.qk_norm:
        shapes |= {f"self_attn.{name}.weight": (config.head_dim,) for name in ("q_norm", "k_norm")}
    return shapes


def _read_layer(
    checkpoint: Checkpoint, matrix: Callable[..., Matrix], config: DecoderConfig, layer: int
) -> LayerWeights:
    def linear(bias: bool, *names: str) -> Linear:
        return Linear(
            matrix(*(_name(layer, f"{name}.weight") for name in names)),
            checkpoint.read(*(_name(layer, f"{name}.bias") for name in names)) if bias else None,
        )

    def norm(name: str) -> Tensor:
        return _read_norm(checkpoint, config, _name(layer, f"{name}.weight"))

    qk_norm = None
    if config.qk_norm:
        q_norm, k_norm = norm("self_attn.q_norm"), norm("self_attn.k_norm")
        qk_norm = torch.stack([q_norm] * config.num_heads + [k_norm] * config.num_kv_heads)
    post = config.post_norms
    return LayerWeights(
        attention_norm=norm("input_layernorm"),
        qkv=linear(config.qkv_bias, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        qk_norm=qk_norm,
        out=linear(config.out_bias, "self_attn.o_proj"),
        attention_post_norm=norm("post_attention_layernorm") if post else None,
        mlp_norm=norm("pre_feedforward_layernorm" if post else "post_attention_layernorm"),
        gate_up=linear(config.mlp_bias, "mlp.gate_proj", "mlp.up_proj"),
        down=linear(config.mlp_bias, "mlp.down_proj"),
        mlp_post_norm=norm("post_feedforward_layernorm") if post else None,
    )


def _read_norm(checkpoint: Checkpoint, config: DecoderConfig, name: str) -> Tensor:
    """A norm's weight. Gemma's 1 + weight is computed and kept in float32, as in its modules."""
    weight = checkpoint.read(name)
    return config.norm_offset + weight.float() if config.norm_offset else weight


def _name(layer: int, suffix: str) -> str:
    return f"model.layers.{layer}.{suffix}"
