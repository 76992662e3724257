"""Writes tiny GGUF files the way llama.cpp's converter does, from checkpoints that transformers made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from model.gguf.vocabulary import TokenKind

Weights = npt.NDArray[np.float32]
Stored = tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]
ARCHITECTURE = {"mistral": "llama", "gemma3_text": "gemma3"}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_PARTS = PARTS | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
F32 = gguf.GGMLQuantizationType.F32


def as_float32(_name: str, weights: Weights) -> Stored:
    return weights, F32


def write_gguf(
    checkpoint: Path,
    path: Path,
    vocabulary: Mapping[str, Any] | None = None,
    store: Callable[[str, Weights], Stored] = as_float32,
    extra: Callable[[gguf.GGUFWriter], None] = lambda _: None,
) -> Path:
    """vocabulary: tokenizer keys without their prefix. store: how a matrix is stored. extra: writes further keys."""
    config = json.loads((checkpoint / "config.json").read_text())
    family = config["model_type"]
    writer = gguf.GGUFWriter(path, ARCHITECTURE.get(family, family))
    _write_shape(writer, config)
    _write_rope(writer, config)
    for key, value in (vocabulary or byte_vocabulary(config["vocab_size"])).items():
        _write_value(writer, key if key.startswith("tokenizer.") else f"tokenizer.ggml.{key}", value)
    extra(writer)
    for name, weights in load_file(checkpoint / "model.safetensors").items():
        data, kind = converted(name, weights, config)
        if kind is None:
            data, kind = store(name, weights if data is None else data)
        writer.add_tensor(gguf_name(name, family), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(name: str, weights: Weights, config: dict[str, Any]) -> tuple[Weights, gguf.GGMLQuantizationType | None]:
    """What llama.cpp's converter makes of a tensor, and its type if it is a vector."""
    family = config["model_type"]
    if family in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
        weights = permuted(weights, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
    if family.startswith("gemma") and name.endswith("norm.weight"):
        weights = weights + 1
    return weights, F32 if weights.ndim == 1 else None


def permuted(weights: Weights, heads: int) -> Weights:
    """The two halves of each head, interleaved."""
    halves = weights.reshape(heads, 2, len(weights) // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def gguf_name(name: str, family: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{(GEMMA_PARTS if family.startswith('gemma') else PARTS)[part]}.{kind}"


def byte_vocabulary(size: int) -> dict[str, Any]:
    """Byte-level tokens, none of which merge; ids 0 to 2 are pad, bos and eos."""
    tokens = ["<pad>", "<s>", "</s>", *(chr(0x100 + index) for index in range(size - 3))]
    kinds = [TokenKind.CONTROL] * 3 + [TokenKind.NORMAL] * (size - 3)
    return {
        "model": "gpt2",
        "pre": "default",
        "tokens": tokens,
        "token_type": [int(kind) for kind in kinds],
        "merges": [f"{tokens[3]} {tokens[4]}"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 0,
    }


def _write_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads, head_dim = config["num_attention_heads"], config.get("head_dim")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.get("sliding_window") and config["model_type"] != "qwen2":
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _write_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        _write_value(writer, f"{writer.arch}.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
