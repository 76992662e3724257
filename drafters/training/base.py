"""The model that training starts from: a fresh small Llama, or the first layers of a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from drafters.manifest import vocabulary_hash
from drafters.training.config import CheckpointBase, FreshBase, TrainDrafterConfig
from model.checkpoint import GgufTensors
from model.gguf.unpack import GGUF_NAME
from protocol.errors import ConfigError


def build_model(config: TrainDrafterConfig) -> Any:
    """The model of `config.base` in float32."""
    if isinstance(config.base, CheckpointBase):
        return first_layers(config.base)
    torch.manual_seed(config.seed)
    return fresh_llama(config.base)


def first_layers(base: CheckpointBase) -> Any:
    """The first `base.layers` layers of the checkpoint, with its embeddings, final norm and LM head."""
    config = AutoConfig.from_pretrained(base.checkpoint)
    if base.layers > config.num_hidden_layers:
        raise ConfigError(
            f"base.layers is {base.layers}, but {base.checkpoint} has {config.num_hidden_layers} layers: lower it"
        )
    config.num_hidden_layers = base.layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: base.layers]
    return load_model(base.checkpoint, torch.float32, config)


def load_model(folder: Path, dtype: torch.dtype, config: Any = None) -> Any:
    """transformers' model of the checkpoint in `folder`, which may hold a GGUF file. config: instead of its own."""
    auto: Any = AutoModelForCausalLM
    if not (folder / GGUF_NAME).exists():
        return auto.from_pretrained(folder, config=config, dtype=dtype, attn_implementation="eager")
    config = config or AutoConfig.from_pretrained(folder)
    model = auto.from_config(config, dtype=dtype, attn_implementation="eager")
    stored = GgufTensors(folder / GGUF_NAME)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored.copy(name, parameter)
    return model


def fresh_llama(base: FreshBase) -> Any:
    """A new Llama with tied embeddings whose layers start as the identity (output projections zero)."""
    special: dict[str, Any] = _special_ids(base.tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_vocabulary_size(base.tokenizer),
            hidden_size=base.hidden_size,
            intermediate_size=base.intermediate_size,
            num_hidden_layers=base.num_hidden_layers,
            num_attention_heads=base.num_attention_heads,
            num_key_value_heads=base.num_attention_heads,
            head_dim=base.hidden_size // base.num_attention_heads,
            max_position_embeddings=base.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            **special,
        )
    )
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def tokenizer_folder(config: TrainDrafterConfig) -> Path:
    """The folder whose tokenizer the drafter takes over."""
    base = config.base
    return base.checkpoint if isinstance(base, CheckpointBase) else base.tokenizer


def check_vocabularies(tokenizer: Path, targets: Sequence[Path]) -> None:
    """Refuses a target whose token ids do not mean what the drafter's do."""
    for target in targets:
        if vocabulary_hash(target) != vocabulary_hash(tokenizer):
            raise ConfigError(f"targets: {target} has another vocabulary than {tokenizer}: use one tokenizer for all")


def _tokens(folder: Path) -> dict[str, int]:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    return {**tokenizer["model"]["vocab"], **added}


def _vocabulary_size(folder: Path) -> int:
    return max(_tokens(folder).values()) + 1


def _special_ids(folder: Path) -> dict[str, int | None]:
    names = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = _tokens(folder)
    return {f"{name}_token_id": tokens.get(names.get(f"{name}_token", "")) for name in ("pad", "bos", "eos")}
