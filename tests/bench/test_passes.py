"""Costs of passes and of neighbours are measured on what really runs. Ratios mean nothing at this size."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import gguf
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bench.neighbours import BUSY
from bench.neighbours import measure as beside
from bench.passes import (
    READ,
    load,
    loaded_note,
    matrix_bytes,
    measure,
    ratios,
    read_ms,
    step_bytes,
    step_ms,
    table,
)
from model.config import read_config
from model.execution import Execution
from model.gguf.unpack import unpack
from model.load import WeightFormat
from targets.model import load_target
from tests.model.families import make_checkpoint
from tests.model.gguf.files import Stored, Weights, write_gguf
from tests.model.gguf.test_weights import make_wide_llama


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("passes"), seed=0, max_positions=512)


def test_every_width_and_the_read_are_measured_equally_often_and_compared_by_pairs(target: Path) -> None:
    model = load_target(target, dtype=torch.bfloat16, num_positions=512, page_size=16)
    times = measure(model, 1 << 20, [1, 5], pairs=3)
    assert {name: len(taken) for name, taken in times.items()} == {READ: 3, "1": 3, "5": 3}
    found = ratios(times)
    assert found["5 over 1"].median == median(wide / one for wide, one in zip(times["5"], times["1"], strict=True))
    text = table(times, found, "a note")
    assert [line.split(" | ")[0] for line in text.splitlines()[2:5]] == ["| one read of the weights", "| 1", "| 5"]
    assert text.endswith("\na note\n")
    assert model.ledger.num_free == model.ledger.num_pages


def test_neighbours_are_gone_at_the_end(target: Path) -> None:
    model = load_target(target, dtype=torch.bfloat16, num_positions=128, page_size=16)
    alone, crowded = beside(model, count=1, pairs=2, seconds=0.05)
    assert len(alone) == len(crowded) == 2
    assert min(alone + crowded) > 0
    assert [child for child in psutil.Process().children() if BUSY in child.cmdline()] == []


@pytest.mark.parametrize("execution", [Execution.EAGER, Execution.AUTO])
def test_the_read_and_the_products_cover_all_matrices_of_the_model(target: Path, execution: Execution) -> None:
    model = load_target(target, dtype=torch.float32, num_positions=512, page_size=256, execution=execution)
    weights = AutoModelForCausalLM.from_pretrained(target).named_parameters()
    tied = model.decoder.config.tied_embeddings  # of one that is not, only a row is read
    matrices = sum(p.numel() for name, p in weights if p.dim() == 2 and (tied or "embed" not in name))
    num_bytes = step_bytes(target, torch.float32, WeightFormat.STORED)
    assert num_bytes == 4 * matrices
    assert read_ms(num_bytes, passes=3) > 0
    assert set(step_ms(model, (1, 5), temperature=0.8, passes=3)) == {1, 5}
    assert model.ledger.num_free == model.ledger.num_pages


def as_q8_0(_name: str, weights: Weights) -> Stored:
    return gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0


@pytest.mark.parametrize(("weights", "bits"), [(WeightFormat.STORED, 8.5), (WeightFormat.DENSE, 16)])
def test_a_files_blocks_count_as_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: WeightFormat, bits: float
) -> None:
    monkeypatch.setattr("model.gguf.unpack.cache_directory", lambda: tmp_path / "cache")
    checkpoint = make_wide_llama(tmp_path / "hf")
    directory = unpack(write_gguf(checkpoint, tmp_path / "tiny.gguf", store=as_q8_0))
    tensors = load_file(checkpoint / "model.safetensors")
    found = matrix_bytes(directory, torch.bfloat16, weights)
    assert found == {name: tensor.numel() * bits / 8 for name, tensor in tensors.items() if tensor.ndim == 2}
    own_embedding = 0 if read_config(directory).tied_embeddings else found["model.embed_tokens.weight"]
    assert step_bytes(directory, torch.bfloat16, weights) == sum(found.values()) - own_embedding
    model, loading = load(directory, weights, num_positions=512)
    assert model.ledger.num_pages == 32
    assert 0 < loading["before_mb"] <= loading["peak_mb"]
    assert "before loading" in loaded_note(loading)
