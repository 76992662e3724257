"""The decoder's parts against the formulas of transformers' modules, where whole models would hide a slip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from model.batch import BatchRow, build_batch
from model.config import Rope
from model.decoder import Decoder
from model.eager import rms_norm, rotate, rotation
from model.execution import Execution
from model.kv import bytes_per_slot
from model.load import load_decoder
from tests.model.families import EXECUTIONS, make_checkpoint

ROPE = Rope(tuple((1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)).tolist()), scaling=1.25)
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=EXECUTIONS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("llama"), seed=1)
    return load_decoder(directory, dtype=torch.float32, execution=request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_norms_round_where_each_family_does(dtype: torch.dtype) -> None:
    x, weight = normal(5, 48).to(dtype), normal(48, seed=1).to(dtype)
    for module, ours in [
        (LlamaRMSNorm(48, 1e-5), weight),
        (Gemma2RMSNorm(48, 1e-5), 1.0 + weight.float()),
    ]:
        module.to(dtype).load_state_dict({"weight": weight})
        torch.testing.assert_close(rms_norm(x, ours, 1e-5), module(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_equals_that_of_transformers(dtype: torch.dtype) -> None:
    query, keys = normal(9, 3, 16).to(dtype), normal(9, 2, 16, seed=1).to(dtype)
    positions = torch.tensor([0, 1, 2, 7, 100, 1023, 1024, 2000, 5])
    cos, sin = rotation(ROPE, positions, dtype)
    angles = positions[:, None].float() * torch.tensor(ROPE.inverse_frequencies)
    angles = torch.cat([angles, angles], -1)
    expected = apply_rotary_pos_emb(query, keys, (angles.cos() * 1.25).to(dtype), (angles.sin() * 1.25).to(dtype))
    actual = rotate(torch.cat([query, keys], 1), cos, sin).split_with_sizes([3, 2], 1)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def test_a_position_beyond_the_checkpoint_is_refused(decoder: Decoder) -> None:
    batch = build_batch([BatchRow(np.arange(257), 1)])
    with pytest.raises(ValueError, match="position 256 lies beyond the 256"):
        decoder.run(decoder.embed([5]), batch, decoder.new_kv(257), 0, 1)


@torch.inference_mode()
def test_a_range_of_layers_writes_only_its_own_kv(decoder: Decoder) -> None:
    kv = decoder.new_kv(8)
    slots = np.array([5, 2, 7])
    decoder.run(normal(3, 48), build_batch([BatchRow(slots, 3)]), kv, 1, 3)
    for layer in range(decoder.config.num_layers):
        for tensor in (kv.keys[layer], kv.values[layer]):
            by_slot = tensor.flatten(1) if len(tensor) == 8 else tensor.transpose(0, 1).flatten(1)
            written = by_slot.any(1).nonzero().flatten().tolist()
            assert written == (sorted(slots.tolist()) if layer in (1, 2) else [])


@torch.inference_mode()
def test_logits_leave_the_hidden_states_alone(decoder: Decoder) -> None:
    hidden = normal(3, 48)
    kept = hidden.clone()
    decoder.logits(hidden, [2, 0])
    assert torch.equal(hidden, kept)


@torch.inference_mode()
def test_an_empty_range_returns_its_input(decoder: Decoder) -> None:
    hidden = normal(3, 48)
    kv = decoder.new_kv(3)
    assert torch.equal(decoder.run(hidden, build_batch([BatchRow(np.arange(3), 3)]), kv, 2, 2), hidden)


@pytest.mark.parametrize("execution", EXECUTIONS)
@torch.inference_mode()
def test_logits_are_float32_whatever_the_dtype(tmp_path: Path, execution: Execution) -> None:
    decoder = load_decoder(make_checkpoint("gemma2", tmp_path, seed=0), dtype=torch.bfloat16, execution=execution)
    logits = decoder.logits(normal(2, 48).to(decoder.hidden_dtype), [0, 1])
    assert logits.dtype == torch.float32
    assert decoder.config.final_softcap is not None
    assert logits.abs().max() <= decoder.config.final_softcap


def test_bytes_per_slot_are_those_of_the_tensors(decoder: Decoder) -> None:
    kv = decoder.new_kv(10)
    held = sum(tensor.nbytes for tensor in (*kv.keys, *kv.values))
    assert held <= 10 * bytes_per_slot(decoder.config, decoder.dtype)
