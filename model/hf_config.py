"""Makes a decoder's configuration of a checkpoint's HF config.json, as transformers reads it.

A family is supported if its layer is a combination of the options of DecoderConfig. Other families and options are
refused by name, because a layer that is almost right silently gives wrong text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.config import DecoderConfig, Rope
from model.ends import HEAD_TOKEN_IDS, configured_eos
from protocol.errors import ConfigError, UnsupportedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")

_GEMMA = ("gemma2", "gemma3_text")
_WINDOWS = {"full_attention": False, "sliding_attention": True}


def parse(directory: Path, raw: dict[str, Any]) -> DecoderConfig:
    """raw: what its config.json says. Raises UnsupportedModel, naming the family or option, or ConfigError."""
    _refuse_family(raw.get("model_type"))
    _refuse_foreign(raw)
    try:
        hf = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ConfigError(f"{directory / 'config.json'} is not a valid {raw['model_type']} config: {error}") from error
    family, gemma = str(hf.model_type), hf.model_type in _GEMMA
    _refuse_family(family)  # AutoConfig takes mistral with layer_types for ministral
    _refuse_options(hf)
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    attention_bias = family in ("llama", "qwen3", *_GEMMA) and bool(hf.attention_bias)
    return DecoderConfig(
        family=family,
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=head_dim,
        max_positions=_max_positions(hf),
        eos_token_ids=configured_eos(directory),
        bos_token_id=hf.bos_token_id,
        pad_token_id=hf.pad_token_id,
        activation=_activation(hf),
        norm_eps=hf.rms_norm_eps,
        query_scale=(hf.query_pre_attn_scalar if gemma else head_dim) ** -0.5,
        windows=_windows(hf),
        ropes=_ropes(hf, head_dim),
        tied_embeddings=bool(hf.tie_word_embeddings),
        norm_offset=1.0 if gemma else 0.0,
        post_norms=gemma,
        qk_norm=family in ("qwen3", "gemma3_text"),
        qkv_bias=attention_bias or family == "qwen2",
        out_bias=attention_bias,
        mlp_bias=family == "llama" and bool(hf.mlp_bias),
        embedding_scale=hf.hidden_size**0.5 if gemma else None,
        attention_softcap=hf.attn_logit_softcapping if gemma else None,
        final_softcap=hf.final_logit_softcapping if gemma else None,
        head_token_ids=_head_token_ids(raw, hf),
    )


def _head_token_ids(raw: dict[str, Any], hf: Any) -> tuple[int, ...]:
    ids = raw.get(HEAD_TOKEN_IDS, [])
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ConfigError(f"{HEAD_TOKEN_IDS} of config.json is not a list of token ids; trim the drafter again")
    if ids and (
        len(ids) < 2 or ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= hf.vocab_size or hf.tie_word_embeddings
    ):
        raise ConfigError(
            f"{HEAD_TOKEN_IDS} of config.json must hold at least two ids that ascend below {hf.vocab_size}, and the "
            "head must not be tied to the embedding; trim the drafter again"
        )
    return tuple(ids)


def _refuse_family(family: object) -> None:
    if family not in FAMILIES:
        raise UnsupportedModel(f"model family {family!r} is not supported; supported are {', '.join(FAMILIES)}")


def _refuse_foreign(raw: dict[str, Any]) -> None:
    family = raw["model_type"]
    if raw.get("quantization_config"):
        raise UnsupportedModel(f"this {family} checkpoint is quantized; give its unquantized safetensors checkpoint")
    if "AutoModelForCausalLM" in (raw.get("auto_map") or {}):
        raise UnsupportedModel(f"this {family} checkpoint brings its own model code (auto_map), which is never run")


def _refuse_options(hf: Any) -> None:
    family = hf.model_type
    if getattr(hf, "use_bidirectional_attention", False):
        raise UnsupportedModel(f"{family} with use_bidirectional_attention is not a causal decoder")
    if family == "gemma3_text" and hf.attn_logit_softcapping is not None:
        raise UnsupportedModel("gemma3_text with attn_logit_softcapping is not supported: transformers ignores it")
    if family == "llama" and getattr(hf, "layer_types", None) is not None:
        raise UnsupportedModel("llama with layer_types is not supported: transformers ignores them")


def _activation(hf: Any) -> str:
    name = str(hf.hidden_activation if hf.model_type in _GEMMA else hf.hidden_act)
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"activation {name!r} of {hf.model_type} is not supported: {', '.join(ACTIVATIONS)}")
    return name


def _windows(hf: Any) -> tuple[int | None, ...]:
    if hf.model_type == "llama":
        return (None,) * int(hf.num_hidden_layers)
    if hf.model_type == "mistral":
        return (hf.sliding_window,) * int(hf.num_hidden_layers)
    for name in hf.layer_types:
        if name not in _WINDOWS:
            raise UnsupportedModel(f"layer type {name!r} of {hf.model_type} is not supported: {', '.join(_WINDOWS)}")
        if _WINDOWS[name] and hf.sliding_window is None:
            raise UnsupportedModel(f"{hf.model_type} has sliding_attention layers but sliding_window is off")
    return tuple(hf.sliding_window if _WINDOWS[name] else None for name in hf.layer_types)


def _max_positions(hf: Any) -> int:
    """The context length with a scaled rope. For llama3 and Gemma-3, max_position_embeddings already includes it."""
    positions, parameters = int(hf.max_position_embeddings), hf.rope_parameters or {}
    if hf.model_type == "gemma3_text" or parameters.get("rope_type") not in ("linear", "yarn"):
        return positions
    original = parameters.get("original_max_position_embeddings") or positions
    return max(positions, int(original * (parameters.get("factor") or 1.0)))


def _ropes(hf: Any, head_dim: int) -> tuple[Rope, ...]:
    """One per layer; equal layers share one value."""
    if hf.model_type != "gemma3_text":
        return (_rope(hf, head_dim, hf.rope_parameters, None),) * int(hf.num_hidden_layers)
    by_type = {name: _rope(hf, head_dim, hf.rope_parameters.get(name), name) for name in set(hf.layer_types)}
    return tuple(by_type[name] for name in hf.layer_types)


def _rope(hf: Any, head_dim: int, parameters: dict[str, Any] | None, layer_type: str | None) -> Rope:
    rope_type = (parameters or {}).get("rope_type")
    if parameters is None or rope_type not in ROPE_TYPES:
        raise UnsupportedModel(f"rope type {rope_type!r} of {hf.model_type} is not supported: {', '.join(ROPE_TYPES)}")
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModel(f"partial_rotary_factor {parameters['partial_rotary_factor']} is not supported")
    if rope_type == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return Rope(tuple((1.0 / parameters["rope_theta"] ** exponents).tolist()))
    frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](hf, torch.device("cpu"), layer_type=layer_type)
    return Rope(tuple(frequencies.tolist()), float(scaling))
