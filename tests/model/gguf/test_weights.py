"""GGUF files of every family and block format against transformers on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from model.blocks import BlockFormat
from model.execution import Execution
from model.files import resolve
from model.gguf.hf_rope import LLAMA3, llama3_factors
from model.gguf.tensors import GgufCheckpoint
from model.load import WeightFormat, load_decoder
from tests.model.families import EXECUTIONS, WINDOW, make_checkpoint, needs_compiler
from tests.model.gguf.files import Stored, Weights, permuted, write_gguf
from tests.model.test_families import Sequences, assert_same, oracle_logits, random_tokens

Bytes = npt.NDArray[np.uint8]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": LLAMA3[0],
    "high_freq_factor": LLAMA3[1],
    "original_max_position_embeddings": LLAMA3[2],
}
# Changes of the tiny checkpoints: what GGUF cannot say is left out.
FAMILIES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "llama": {},
        "llama-llama3-rope-biases-tied": {"rope_parameters": LLAMA3_ROPE},
        "llama-yarn-rope": {},
        "llama-linear-rope-no-gqa": {},
        "mistral": {},
        "qwen2": {"use_sliding_window": False, "layer_types": ["full_attention"] * 4},
        "qwen3": {},
        "gemma2": {"query_pre_attn_scalar": 16},
        "gemma3_text": {"query_pre_attn_scalar": 16},
    }
)


def changed(checkpoint: Path, changes: dict[str, Any]) -> Path:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return checkpoint


def add_llama3_factors(writer: gguf.GGUFWriter) -> None:
    factors = llama3_factors(500_000.0, 12, 8.0, *LLAMA3)
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def extra_of(family: str) -> Callable[[gguf.GGUFWriter], None]:
    if "llama3" in family:
        return add_llama3_factors
    if family == "gemma3_text":
        return lambda writer: writer.add_sliding_window_pattern([True, False, True, False])
    return lambda writer: None


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of transformers, and the same as a GGUF file."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = changed(make_checkpoint(request.param, folder / "hf", seed=7), FAMILIES[request.param])
    return checkpoint, write_gguf(checkpoint, folder / "model.gguf", extra=extra_of(request.param))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_file_gives_the_logits_of_transformers(pair: tuple[Path, Path], execution: Execution) -> None:
    tokens = random_tokens(0, 4 * WINDOW)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32), tokens)
    decoder = load_decoder(resolve(str(pair[1])), dtype=torch.float32, execution=execution, weights=WeightFormat.DENSE)
    assert_same(Sequences(decoder).forward({0: tokens})[0], expected)


def test_weights_lie_in_the_file_under_their_hf_names(pair: tuple[Path, Path]) -> None:
    checkpoint = GgufCheckpoint(pair[1])
    for name, expected in load_file(pair[0] / "model.safetensors").items():
        np.testing.assert_allclose(checkpoint.dense(name, 0, len(expected)), expected, atol=1e-6)


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int, rng: np.random.Generator) -> Bytes:
    """Any bytes are blocks of these formats, but scales are float16 and must be small numbers."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, columns // block, size), np.uint8)
    scales = rng.uniform(0.5, 1, (rows, columns // block, 2))
    if kind == gguf.GGMLQuantizationType.Q6_K:
        data[..., -2:] = (scales[..., :1] * 3e-5).astype(np.float16).view(np.uint8)
    else:
        data[..., :4] = (scales * 3e-4).astype(np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def packed(kind: gguf.GGMLQuantizationType, weights: Weights, rng: np.random.Generator) -> Bytes:
    try:
        data = gguf.quants.quantize(weights, kind)
    except NotImplementedError:
        data = random_blocks(kind, *weights.shape, rng)
    return np.ascontiguousarray(data).view(np.uint8)


@pytest.fixture(scope="module", params=list(BlockFormat))
def quantized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, BlockFormat]:
    """A llama whose matrices are blocks of one format, and a checkpoint of transformers with the same weights."""
    folder, kind = tmp_path_factory.mktemp(request.param), gguf.GGMLQuantizationType[request.param]
    checkpoint = make_wide_llama(folder / "hf")
    tensors, rng = load_file(checkpoint / "model.safetensors"), np.random.default_rng(0)
    stored = {name: packed(kind, value, rng) for name, value in tensors.items() if value.ndim == 2}
    dense = {name: gguf.quants.dequantize(data, kind) for name, data in stored.items()}
    save_file(tensors | dense, checkpoint / "model.safetensors", metadata={"format": "pt"})

    def store(name: str, _: Weights) -> Stored:
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        data = stored[name] if heads is None else permuted(stored[name], heads)
        return data, kind

    return checkpoint, write_gguf(checkpoint, folder / "model.gguf", store=store), request.param


def make_wide_llama(directory: Path) -> Path:
    """Rows of whole blocks, which are of up to 256 numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=160,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_a_block_format_gives_the_logits_of_its_dense_weights(quantized: tuple[Path, Path, BlockFormat]) -> None:
    tokens = random_tokens(0, 20)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(quantized[0], dtype=torch.float32), tokens)
    decoder = load_decoder(resolve(str(quantized[1])), dtype=torch.float32, weights=WeightFormat.DENSE)
    assert_same(Sequences(decoder).forward({0: tokens})[0], expected)


@needs_compiler
def test_blocks_that_stay_as_they_are_give_nearly_these_logits(quantized: tuple[Path, Path, BlockFormat]) -> None:
    """The kernels round activations to int8; matrices in floats are dense anyway."""
    tokens, directory = random_tokens(0, 20), resolve(str(quantized[1]))
    exact, found = (
        Sequences(load_decoder(directory, dtype=torch.float32, weights=weights)).forward({0: tokens})[0]
        for weights in (WeightFormat.DENSE, WeightFormat.STORED)
    )
    assert (found - exact).std() < 0.05 * exact.std()
    assert torch.equal(found, exact) == (quantized[2] in (BlockFormat.F32, BlockFormat.F16, BlockFormat.BF16))


def test_blocks_are_the_files_own_in_the_order_of_hf(quantized: tuple[Path, Path, BlockFormat]) -> None:
    checkpoint, dense = GgufCheckpoint(quantized[1]), load_file(quantized[0] / "model.safetensors")
    for name, expected in dense.items():
        if expected.ndim == 2:
            blocks = checkpoint.blocks(name)
            assert (blocks.format, blocks.shape) == (quantized[2], expected.shape)
            np.testing.assert_array_equal(blocks.dense(), expected)
    assert not checkpoint.blocks("model.layers.0.mlp.down_proj.weight").data.flags.owndata


def test_a_vector_has_no_blocks(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="not a matrix"):
        GgufCheckpoint(pair[1]).blocks("model.norm.weight")
