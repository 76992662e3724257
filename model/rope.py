"""Angles of rotary embeddings, always in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import Rope


def rope_table(rope: Rope, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length-1, [length, head_dim / 2] each, scaled for yarn."""
    frequencies = torch.tensor(rope.inverse_frequencies, dtype=torch.float32)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos() * rope.scaling, angles.sin() * rope.scaling
