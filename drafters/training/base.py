"""The model that training starts from: a fresh small Llama, or the first layers of a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from drafters.manifest import vocabulary_hash
from drafters.training.config import Base, FreshShape
from model.checkpoint import GgufTensors
from model.ends import HEAD_TOKEN_IDS
from model.gguf.unpack import GGUF_NAME
from model.tokenizer import load_tokenizer
from protocol.errors import ConfigError


def build_model(base: Base, seed: int) -> Any:
    """The model of `base` in float32. seed: of fresh weights."""
    if base.fresh is None:
        return first_layers(base)
    torch.manual_seed(seed)
    return fresh_llama(base, base.fresh)


def first_layers(base: Base) -> Any:
    """The first layers of the checkpoint, with its embeddings, final norm and LM head."""
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


def trim_head(model: Any, token_ids: Sequence[int]) -> None:
    """Gives the model an LM head of its own with rows for these tokens only, and keeps its embeddings as they are."""
    kept = model.lm_head.weight.detach()[list(token_ids)].clone()
    model.lm_head = nn.Linear(kept.shape[1], kept.shape[0], bias=False)
    model.lm_head.weight = nn.Parameter(kept)
    model.model.embed_tokens.weight = nn.Parameter(model.model.embed_tokens.weight.detach(), requires_grad=False)
    model.config.tie_word_embeddings = False
    setattr(model.config, HEAD_TOKEN_IDS, list(token_ids))


def head_columns(model: Any) -> Tensor:
    """[vocabulary] int64: the row of the LM head for each token, -1 if it has none."""
    token_ids = getattr(model.config, HEAD_TOKEN_IDS, None)
    if not token_ids:
        return torch.arange(model.config.vocab_size, device=model.device)
    columns = torch.full((model.config.vocab_size,), -1, dtype=torch.int64, device=model.device)
    columns[token_ids] = torch.arange(len(token_ids), device=model.device)
    return columns


def fresh_llama(base: Base, shape: FreshShape) -> Any:
    """A new Llama with tied embeddings whose layers start as the identity (output projections are zero)."""
    tokenizer = load_tokenizer(base.checkpoint)
    config = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        num_hidden_layers=base.layers,
        **shape.model_dump(),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def check_vocabularies(tokenizer: Path, targets: Sequence[Path]) -> None:
    """Raises ConfigError for a target whose token ids do not mean what the drafter's do."""
    for target in targets:
        if vocabulary_hash(target) != vocabulary_hash(tokenizer):
            raise ConfigError(f"targets: {target} has another vocabulary than {tokenizer}: use one tokenizer for all")
