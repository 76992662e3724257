"""Tiny random checkpoints of every supported family, made by transformers itself.

`make_checkpoint(name, directory, seed)` writes one; NAMES lists them. They have no tokenizer, float32 weights,
a vocabulary of 160, bos 1, eos 2 and pad 0, and every window is WINDOW, so a prompt longer than that crosses it.
Weights are drawn wide enough that logits are far from flat and greedy choices far from ties.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from model.execution import Execution
from model.native.compiler import CompilerError, find_compiler


def has_compiler() -> bool:
    try:
        return bool(find_compiler())
    except CompilerError:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler, so no native kernels")
EXECUTIONS = [Execution.EAGER, pytest.param(Execution.NATIVE, marks=needs_compiler)]

VOCAB = 160
EOS = 2
WINDOW = 12


def _sizes(**changes: Any) -> dict[str, Any]:
    base = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    return base | changes


def _scaled_rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 1000.0, "factor": 4.0} | parameters


def _llama3() -> PreTrainedConfig:
    rope = _scaled_rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    return LlamaConfig(**_sizes(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=rope))


def _gemma3() -> PreTrainedConfig:
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": _scaled_rope("linear"),
    }
    sizes = _sizes(num_key_value_heads=1, head_dim=16, tie_word_embeddings=True)
    layer_types = ["sliding_attention", "full_attention"] * 2
    return Gemma3TextConfig(
        **sizes, sliding_window=WINDOW, layer_types=layer_types, query_pre_attn_scalar=20, rope_parameters=ropes
    )


_CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = MappingProxyType(
    {
        "llama": lambda: LlamaConfig(**_sizes()),
        "llama-llama3-rope-biases-tied": _llama3,
        "llama-yarn-rope": lambda: LlamaConfig(
            **_sizes(rope_parameters=_scaled_rope("yarn", original_max_position_embeddings=64))
        ),
        "llama-linear-rope-no-gqa": lambda: LlamaConfig(
            **_sizes(num_key_value_heads=4, rope_parameters=_scaled_rope("linear"))
        ),
        "mistral": lambda: MistralConfig(**_sizes(head_dim=16), sliding_window=WINDOW),
        "qwen2": lambda: Qwen2Config(
            **_sizes(tie_word_embeddings=True), use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
        ),
        "qwen3": lambda: Qwen3Config(**_sizes(head_dim=16)),
        "gemma2": lambda: Gemma2Config(
            **_sizes(head_dim=16, tie_word_embeddings=True),
            sliding_window=WINDOW,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
        ),
        "gemma3_text": _gemma3,
    }
)
NAMES = tuple(_CONFIGS)


def make_checkpoint(
    family: str, directory: Path, seed: int, dtype: torch.dtype = torch.float32, max_positions: int = 256
) -> Path:
    """family: one of NAMES. Returns `directory`, which then holds config.json and model.safetensors."""
    config = _CONFIGS[family]()
    config.max_position_embeddings = max_positions
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    _randomize(model, seed, config)
    model.to(dtype).save_pretrained(directory)
    return directory


def _randomize(model: torch.nn.Module, seed: int, config: PreTrainedConfig) -> None:
    """Embeddings are small, so that tied ones do not echo their token; the last norm makes up for it."""
    gemma = config.model_type.startswith("gemma")
    embedding_std = 0.1 if gemma else 0.4
    final_norm = 1.5 / embedding_std if config.tie_word_embeddings else 1.0
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed_tokens" in name:
                parameter.copy_(noise * embedding_std * parameter.shape[1] ** -0.5)
            elif parameter.ndim == 2:
                parameter.copy_(noise * 1.5 * parameter.shape[1] ** -0.5)
            elif name.endswith("norm.weight"):
                mean = final_norm if name == "model.norm.weight" else 1.0
                parameter.copy_(noise * 0.2 + mean - (1.0 if gemma else 0.0))
            else:
                parameter.copy_(noise * 0.2)


def change_config(directory: Path, change: dict[str, Any]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
