"""HF checkpoints written as GGUF files, against the file that another converter makes of the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from model.blocks import BlockFormat
from model.config import read_config
from model.files import resolve
from model.gguf.export import ExportOptions, export_gguf
from model.gguf.header import read_header
from model.gguf.tensors import GgufCheckpoint
from model.gguf.writer import WRITABLE
from model.load import load_decoder
from protocol.errors import ConfigError
from tests.model.families import VOCAB, WINDOW, change_config, make_checkpoint
from tests.model.gguf.files import write_gguf
from tests.model.gguf.test_weights import FAMILIES, changed, extra_of
from tests.model.sequences import Sequences, random_tokens

DENSE = (BlockFormat.F32, BlockFormat.BF16, BlockFormat.F16)
SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "head_dim": 16,
    }
)
GEMMA2 = {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}
CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = MappingProxyType(
    {
        "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
        "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
        "gemma2": lambda: Gemma2Config(**SIZES, **GEMMA2, final_logit_softcapping=5.0, tie_word_embeddings=True),
    }
)


def all_in(kind: BlockFormat, depth: int = 3, full_head: bool = False) -> ExportOptions:
    return ExportOptions(depth, kind, kind, full_head)


def export(directory: Path, like: Path, out: Path, options: ExportOptions) -> Path:
    export_gguf(directory, read_header(like), out, options, lambda done, total: None)
    return out


def make_exact(family: str, directory: Path) -> Path:
    """Rows of whole blocks, and numbers of seven bits, which every dense format holds."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(CONFIGS[family](), dtype=torch.float32)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 96 if name.endswith("norm.weight") and family != "gemma2" else 0
            parameter.copy_((torch.randint(-31, 32, parameter.shape, generator=rng) + centre) / 128)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=CONFIGS)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the same as a GGUF file."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_exact(request.param, folder / "hf")
    return checkpoint, write_gguf(checkpoint, folder / "like.gguf")


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_format_gives_the_weights_back(exact: tuple[Path, Path], tmp_path: Path, kind: BlockFormat) -> None:
    written = GgufCheckpoint(export(*exact, tmp_path / "out.gguf", all_in(kind)))
    expected = load_file(exact[0] / "model.safetensors")
    assert written.shapes.keys() == expected.keys()
    for name, weights in expected.items():
        np.testing.assert_array_equal(written.dense(name, 0, len(weights)), weights)


@pytest.mark.parametrize("kind", sorted(set(WRITABLE) - set(DENSE)))
def test_a_format_of_few_bits_gives_what_gguf_makes_of_the_weights(
    exact: tuple[Path, Path], tmp_path: Path, kind: BlockFormat
) -> None:
    options = ExportOptions(3, kind, BlockFormat.Q4_1, False)
    written = GgufCheckpoint(export(*exact, tmp_path / "out.gguf", options))
    for name, weights in load_file(exact[0] / "model.safetensors").items():
        own = gguf.GGMLQuantizationType["Q4_1" if "embed" in name else kind.value if weights.ndim == 2 else "F32"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(weights, own), own)
        np.testing.assert_array_equal(written.dense(name, 0, len(weights)), expected)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As `exact`, of every family and with any numbers."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = changed(make_checkpoint(request.param, folder / "hf", seed=7), FAMILIES[request.param])
    return checkpoint, write_gguf(checkpoint, folder / "like.gguf", extra=extra_of(request.param))


def raw_tensors(path: Path) -> dict[str, bytes]:
    header, data = read_header(path), path.read_bytes()
    return {name: data[one.start : one.start + one.num_bytes] for name, one in header.tensors.items()}


def test_the_file_of_a_model_is_its_own_file_again(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Names, rows and values of every family, the metadata, and the types of both."""
    out = export(*pair, tmp_path / "out.gguf", all_in(BlockFormat.F32, 4))
    assert raw_tensors(out) == raw_tensors(pair[1])
    like, written = read_header(pair[1]), read_header(out)
    own = {"general.name", "general.file_type", "general.quantization_version"}
    assert {key: value for key, value in written.metadata.items() if key not in own} == like.metadata
    assert {key: types for key, types in written.types.items() if key not in own} == like.types
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_file_of_the_first_layers_is_the_model_cut_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    directory = resolve(str(export(*pair, tmp_path / "out.gguf", all_in(BlockFormat.F32, 2))))
    ids: dict[str, Any] = {"eos_token_ids": (), "bos_token_id": None, "pad_token_id": None}
    assert replace(read_config(directory), **ids) == replace(read_config(pair[0]).first_layers(2), **ids)
    tokens = {0: random_tokens(0, 30)}
    cut, whole = (load_decoder(path, dtype=torch.float32, num_layers=2) for path in (directory, pair[0]))
    torch.testing.assert_close(Sequences(cut).forward(tokens), Sequences(whole).forward(tokens))


KEPT = [1, 2, 5, 77, 159]


@pytest.fixture
def trimmed(tmp_path: Path) -> tuple[Path, Path]:
    """A llama whose head has five rows, and the file of the whole model."""
    checkpoint = make_exact("llama", tmp_path / "hf")
    like = write_gguf(checkpoint, tmp_path / "like.gguf")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"][KEPT]}, checkpoint / "model.safetensors")
    change_config(checkpoint, {"head_token_ids": KEPT})
    return checkpoint, like


def test_a_trimmed_head_stays_trimmed(trimmed: tuple[Path, Path], tmp_path: Path) -> None:
    directory = resolve(str(export(*trimmed, tmp_path / "out.gguf", all_in(BlockFormat.F32))))
    assert read_config(directory).head_token_ids == tuple(KEPT)
    tokens = {0: random_tokens(0, 30)}
    ours, theirs = (load_decoder(path, dtype=torch.float32) for path in (directory, trimmed[0]))
    torch.testing.assert_close(Sequences(ours).forward(tokens), Sequences(theirs).forward(tokens))


def test_a_full_head_has_rows_of_zeros_for_the_tokens_that_are_missing(
    trimmed: tuple[Path, Path], tmp_path: Path
) -> None:
    out = export(*trimmed, tmp_path / "out.gguf", all_in(BlockFormat.Q8_0, full_head=True))
    kind = gguf.GGMLQuantizationType.Q8_0
    rows = load_file(trimmed[0] / "model.safetensors")["lm_head.weight"]
    expected = np.zeros((VOCAB, 64), np.float32)
    expected[KEPT] = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
    np.testing.assert_array_equal(GgufCheckpoint(out).dense("lm_head.weight", 0, VOCAB), expected)
    assert read_config(resolve(str(out))).head_token_ids == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, "differ in ropes "),
        ({"rms_norm_eps": 1e-3}, "differ in norm_eps 0.001 and 1e-06;"),
        ({"max_position_embeddings": 512}, "differ in max_positions 512 and 256;"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    checkpoint = make_exact("llama", tmp_path / "hf")
    like = write_gguf(checkpoint, tmp_path / "like.gguf")
    change_config(checkpoint, change)
    with pytest.raises(ConfigError, match=message):
        export(checkpoint, like, tmp_path / "out" / "out.gguf", all_in(BlockFormat.F32))
    assert not (tmp_path / "out").exists()


def test_another_family_is_refused(tmp_path: Path) -> None:
    checkpoint = make_exact("llama", tmp_path / "llama")
    like = write_gguf(make_exact("qwen2", tmp_path / "qwen2"), tmp_path / "like.gguf")
    with pytest.raises(ConfigError, match=r"differ in family llama and qwen2; .*qkv_bias False and True"):
        export(checkpoint, like, tmp_path / "out.gguf", all_in(BlockFormat.F32))


def test_a_mistral_without_windows_is_a_llama(tmp_path: Path) -> None:
    checkpoint = make_exact("llama", tmp_path / "hf")
    like = write_gguf(checkpoint, tmp_path / "like.gguf")
    config = json.loads((checkpoint / "config.json").read_text())
    mistral = shutil.copytree(checkpoint, tmp_path / "mistral")
    (mistral / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": None}))
    out = export(mistral, like, tmp_path / "out.gguf", all_in(BlockFormat.F32))
    assert raw_tensors(out) == raw_tensors(like)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "hf", seed=1)
    like = write_gguf(checkpoint, tmp_path / "like.gguf")
    with pytest.raises(ConfigError, match=r"model.embed_tokens.weight has rows of 48 numbers, which Q8_0 does not"):
        export(checkpoint, like, tmp_path / "out.gguf", all_in(BlockFormat.Q8_0, 4))
