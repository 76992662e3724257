"""Angles of rotary embeddings, always in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import Rope


def rope_angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """positions: [n]. Returns their cosines and sines, [n, head_dim / 2] each, scaled for yarn."""
    frequencies = torch.tensor(rope.inverse_frequencies, dtype=torch.float32, device=positions.device)
    angles = positions[:, None].float() * frequencies
    return angles.cos() * rope.scaling, angles.sin() * rope.scaling


def rope_table(rope: Rope, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length-1."""
    return rope_angles(rope, torch.arange(length))
