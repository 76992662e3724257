"""A GGUF file's metadata as the config.json that transformers would have written for the same model.

Keys that are not known here are refused by name, because a layer that is almost right silently gives wrong text.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from model.gguf.header import GgufHeader
from model.gguf.hf_rope import rope_parameters
from protocol.errors import ConfigError, UnsupportedModel

ARCHITECTURES = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "gemma2": "Gemma2ForCausalLM",
        "gemma3": "Gemma3ForCausalLM",
    }
)
FAMILY_OF = MappingProxyType({name: name for name in ARCHITECTURES} | {"gemma3": "gemma3_text"})
HEAD_KEY = "draftpool.head_token_ids"  # of a trimmed head
_WINDOW_PERIOD = MappingProxyType({"gemma2": 2, "gemma3": 6})  # one layer in so many, the last, attends to everything
_LAYERS_OF_27B = MappingProxyType({"gemma2": 46, "gemma3": 62})  # these models scale queries by hidden / heads
_KNOWN = frozenset(
    [
        *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("tensor_data_layout", "attn_logit_softcapping", "final_logit_softcapping"),
        *(f"attention.{key}" for key in ("head_count", "head_count_kv", "key_length", "value_length", "causal")),
        *(f"attention.{key}" for key in ("layer_norm_rms_epsilon", "sliding_window", "sliding_window_pattern")),
        *(f"rope.{key}" for key in ("dimension_count", "freq_base", "freq_base_swa", "scale_linear")),
        *(f"rope.scaling.{key}" for key in ("type", "factor", "attn_factor", "original_context_length", "finetuned")),
    ]
)


class Hyperparameters:
    """The values of one architecture, by key without its prefix."""

    def __init__(self, header: GgufHeader) -> None:
        self.path = header.path
        self.architecture = str(header.metadata.get("general.architecture"))
        prefix = f"{self.architecture}."
        self._values = {
            key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
        }

    def check(self) -> None:
        """Raises UnsupportedModel for a family or a key that is not known."""
        if self.architecture not in ARCHITECTURES:
            raise UnsupportedModel(
                f"{self.path} holds a model of the family {self.architecture!r}; supported are "
                f"{', '.join(ARCHITECTURES)}: take another model"
            )
        unknown = sorted(key for key, value in self._values.items() if key not in _KNOWN and value)
        if unknown or not self.get("attention.causal", True):
            named = ", ".join(f"{self.architecture}.{key}" for key in unknown or ["attention.causal"])
            raise UnsupportedModel(f"{self.path} sets {named}, which is not supported; take another model")

    def get(self, key: str, default: Any = None) -> Any:
        """One value. A list whose items are equal counts as one. Floats are the shortest that round to the stored."""
        value = self._values.get(key, default)
        if isinstance(value, list) and key != "attention.sliding_window_pattern":
            if len(set(value)) != 1:
                raise UnsupportedModel(f"{self.path} sets {key} layer by layer, which is not supported")
            value = value[0]
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ConfigError(f"{self.path} lacks {self.architecture}.{key}; convert the model again")
        return value


def hf_config(header: GgufHeader, frequency_factors: Sequence[float] | None) -> dict[str, Any]:
    """config.json. frequency_factors: the divisors of llama 3's rotary frequencies, if the file holds any.

    Raises UnsupportedModel or ConfigError.
    """
    values = Hyperparameters(header)
    values.check()
    family = _family(values)
    heads, hidden = values.need("attention.head_count"), values.need("embedding_length")
    head_dim = _head_dim(values, hidden // heads)
    tensors = header.tensors
    if "token_embd.weight" not in tensors:
        raise ConfigError(f"{header.path} holds no token_embd.weight; take a file with the whole model")
    return {
        "architectures": [ARCHITECTURES[family.removesuffix("_text")]],
        "model_type": family,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": values.need("feed_forward_length"),
        "num_hidden_layers": values.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": values.need("context_length"),
        "rms_norm_eps": values.need("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(values, head_dim, frequency_factors),
        "tie_word_embeddings": "output.weight" not in tensors,
        "head_token_ids": header.metadata.get(HEAD_KEY, []),
        **_attention(values, family, hidden // heads, head_dim, tensors.keys()),
    }


def _family(values: Hyperparameters) -> str:
    """Mistral's files say llama, which is the same layer unless it has a window."""
    if values.architecture == "llama" and values.get("attention.sliding_window"):
        return "mistral"
    return FAMILY_OF[values.architecture]


def _head_dim(values: Hyperparameters, default: int) -> int:
    head_dim: int = values.get("attention.key_length", values.get("rope.dimension_count", default))
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, head_dim) != head_dim:
            raise UnsupportedModel(
                f"{values.path} has {key} {values.get(key)} and heads of {head_dim}, which is not supported"
            )
    return head_dim


def _attention(values: Hyperparameters, family: str, share: int, head_dim: int, names: Any) -> dict[str, Any]:
    """What is particular to the family. share: hidden size by heads."""
    architecture = values.architecture
    if architecture not in _WINDOW_PERIOD:
        biases = {"attention_bias": "blk.0.attn_q.bias" in names}
        biases |= {"mlp_bias": "blk.0.ffn_down.bias" in names} if family == "llama" else {}
        activation = {"hidden_act": "silu"}
        if family == "qwen2":
            return activation
        window = {"sliding_window": values.get("attention.sliding_window")} if family == "mistral" else {}
        return activation | window | (biases if family != "mistral" else {})
    is_27b = values.need("block_count") == _LAYERS_OF_27B[architecture]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": share if is_27b else head_dim,
        "sliding_window": values.need("attention.sliding_window"),
        "layer_types": _layer_types(values),
        "attn_logit_softcapping": values.get("attn_logit_softcapping"),
        "final_logit_softcapping": values.get("final_logit_softcapping"),
    }


def _layer_types(values: Hyperparameters) -> list[str]:
    """The pattern is a list of flags, or one period."""
    pattern = values.get("attention.sliding_window_pattern", _WINDOW_PERIOD[values.architecture])
    layers = values.need("block_count")
    slides = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in range(layers)]
    return ["sliding_attention" if flag else "full_attention" for flag in slides]
