"""Whether two checkpoints are one model in different weights, so that one can continue on the KV of the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from model.batch import CPU
from model.checkpoint import Checkpoint
from model.config import DecoderConfig, read_config

NORMS = ("model.norm.weight", "model.layers.0.input_layernorm.weight")  # files of four bits keep them in full
ROUNDING = 2.0**-7  # of bf16


def are_siblings(one: Path, other: Path) -> bool:
    """Whether shapes are equal, and norms up to rounding: two trainings never have the same. Heads may differ."""
    if _shape(read_config(one)) != _shape(read_config(other)):
        return False
    first, second = (Checkpoint(directory, torch.float32, CPU) for directory in (one, other))
    return all(torch.allclose(first.read(name), second.read(name), rtol=ROUNDING, atol=0.0) for name in NORMS)


def _shape(config: DecoderConfig) -> DecoderConfig:
    """What attention, positions and residuals depend on."""
    return replace(
        config,
        max_positions=0,
        eos_token_ids=(),
        bos_token_id=None,
        pad_token_id=None,
        tied_embeddings=False,
        head_token_ids=(),
    )
