"""The breakdown of a step on a tiny target: parts that add up, and a step that cannot be read refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.breakdown import measure
from model.execution import Execution
from protocol.errors import ConfigError
from targets.model import load_target
from tests.model.families import make_checkpoint, needs_compiler

PROMPTS = [(5, 6, 7), (8, 9)]


@needs_compiler
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_parts_add_up_to_the_step(tmp_path: Path, temperature: float) -> None:
    directory = make_checkpoint("llama", tmp_path, seed=1)
    model = load_target(directory, dtype=torch.bfloat16, num_positions=1024, page_size=16)
    step = measure(model, PROMPTS, temperature, repeat=3)
    parts = step.products_ms + step.attention_ms + step.sampling_ms + step.bookkeeping_ms
    assert parts == pytest.approx(step.step_ms, abs=1e-3)
    assert min(step.products_ms, step.attention_ms, step.sampling_ms) > 0
    assert step.share == pytest.approx(step.bookkeeping_ms / step.step_ms, abs=2e-4 / step.step_ms)


def test_plain_torch_has_no_clocks_to_read(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path, seed=1)
    model = load_target(directory, dtype=torch.bfloat16, num_positions=256, page_size=16, execution=Execution.EAGER)
    with pytest.raises(ConfigError, match="native kernels' clocks"):
        measure(model, PROMPTS, 0.0, repeat=1)
