"""The decoder's configuration, as a checkpoint's HF config.json says it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from model.ends import configured_eos, read_json
from protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: the angles of position p are p * inverse_frequencies. scaling: factor of cos and sin (yarn)."""

    inverse_frequencies: tuple[float, ...]
    scaling: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and options of a decoder.

    windows, ropes: one per layer; with a window of w, a token attends to itself and the w - 1 tokens before it; None:
    no window. norm_offset: added to norm weights (Gemma stores them around 0 and multiplies in float32). post_norms:
    whether there are norms after attention and MLP too (Gemma). head_token_ids: of a trimmed head, the tokens of
    its rows, ascending; empty: row i is token i.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    activation: str
    norm_eps: float
    query_scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...]
    tied_embeddings: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    embedding_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    head_token_ids: tuple[int, ...] = ()

    @property
    def head_size(self) -> int:
        """Rows of the LM head."""
        return len(self.head_token_ids) or self.vocab_size

    def first_layers(self, num_layers: int) -> DecoderConfig:
        """The same model cut to its first layers, for early exits."""
        if not 0 < num_layers <= self.num_layers:
            raise ConfigError(f"num_layers {num_layers} is not in 1..{self.num_layers}, the layers of this checkpoint")
        return replace(self, num_layers=num_layers, windows=self.windows[:num_layers], ropes=self.ropes[:num_layers])


def read_config(directory: Path) -> DecoderConfig:
    """Raises UnsupportedModel, naming the family or option, or ConfigError when the directory is no HF checkpoint.

    What config.json comes to is kept (model/kept_configs.py): it is transformers that reads it, and that takes seconds
    to import.
    """
    from model.kept_configs import find, keep, place_of

    raw = read_json(directory / "config.json")
    place = place_of(raw)
    config = find(place)
    if config is None:
        from model.hf_config import parse

        config = parse(directory, raw)
        keep(place, config)
    return replace(config, eos_token_ids=configured_eos(directory))
