"""What config.json says becomes the decoder's options; whatever the layer lacks is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.config import read_config
from model.hf_config import FAMILIES
from protocol.errors import UnsupportedModel
from tests.model.families import EOS, change_config, make_checkpoint


def test_eos_is_what_either_config_names(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, seed=0)
    generation = tmp_path / "generation_config.json"
    assert read_config(tmp_path).eos_token_ids == (EOS,)
    generation.write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert read_config(tmp_path).eos_token_ids == (5, 9, EOS)
    generation.write_text("{}")
    assert read_config(tmp_path).eos_token_ids == (EOS,)
    generation.unlink()
    assert read_config(tmp_path).eos_token_ids == (EOS,)
    change_config(tmp_path, {"eos_token_id": None})
    assert read_config(tmp_path).eos_token_ids == ()


def test_what_a_config_class_takes_for_eos_ends_nothing(tmp_path: Path) -> None:
    """LlamaConfig takes 2, which another vocabulary has an ordinary token at."""
    path = make_checkpoint("llama", tmp_path, seed=0) / "config.json"
    values = json.loads(path.read_text())
    del values["eos_token_id"]
    path.write_text(json.dumps(values))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert read_config(tmp_path).eos_token_ids == (5,)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "linear", "factor": 2.5}, 640),
        ({"rope_type": "default"}, 256),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            256,
        ),
    ],
)
def test_a_scaled_rope_reaches_the_scaled_context(tmp_path: Path, rope: dict[str, Any], positions: int) -> None:
    """As vLLM has it: max_position_embeddings, 256 here, counts what llama3 adds and neither yarn's nor linear's."""
    make_checkpoint("llama", tmp_path, seed=0)
    change_config(tmp_path, {"rope_parameters": {"rope_theta": 1e4} | rope})
    assert read_config(tmp_path).max_positions == positions


def test_the_old_name_of_rope_scaling_counts_too(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path, seed=0) / "config.json"
    values = json.loads(path.read_text())
    del values["rope_parameters"]
    values |= {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    path.write_text(json.dumps(values))
    assert read_config(tmp_path).max_positions == 1024


@pytest.mark.parametrize("family", ["gpt2", "phi3", "mixtral", "deepseek_v3", "gemma3", "qwen3_moe", None])
def test_another_family_is_refused_by_name(tmp_path: Path, family: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UnsupportedModel, match=f"{family!r} is not supported") as refusal:
        read_config(tmp_path)
    assert all(name in str(refusal.value) for name in FAMILIES)


LONG_FACTORS = {"long_factor": [1.0] * 6, "short_factor": [1.0] * 6}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | LONG_FACTORS}, "'longrope'"),
        ("qwen2", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "'mrope'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"hidden_act": "xielu"}, "'xielu'"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
        ("llama", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "'ministral'"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "sliding_window is off"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ],
)
def test_an_option_that_the_layer_lacks_is_refused_by_name(
    tmp_path: Path, family: str, change: dict[str, Any], message: str
) -> None:
    change_config(make_checkpoint(family, tmp_path, seed=0), change)
    with pytest.raises(UnsupportedModel, match=message):
        read_config(tmp_path)
