"""Rotary embeddings: from a GGUF file's keys and frequency factors to transformers' rope parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from protocol.errors import UnsupportedModel

LLAMA3 = (1.0, 4.0, 8192)  # low and high frequency factor and original context of every Llama 3
TOLERANCE = 1e-4
GEMMA3_LOCAL_BASE = 10_000.0


class Values(Protocol):
    path: Any
    architecture: str

    def get(self, key: str, default: Any = None) -> Any: ...


def rope_parameters(values: Values, head_dim: int, factors: Sequence[float] | None) -> dict[str, Any]:
    """Raises UnsupportedModel for a scaling that is not known."""
    base = values.get("rope.freq_base", 10_000.0)
    rope = {"rope_theta": base, **_scaling(values)}
    if factors is not None:
        if rope["rope_type"] != "default":
            raise UnsupportedModel(f"{values.path} scales its rotary frequencies twice, which is not supported")
        rope |= _llama3(values, base, head_dim, factors)
    if values.architecture != "gemma3":
        return rope
    local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", GEMMA3_LOCAL_BASE)}
    return {"full_attention": rope, "sliding_attention": local}


def _scaling(values: Values) -> dict[str, Any]:
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    kind = values.get("rope.scaling.type", "linear" if factor else "none")
    if values.get("rope.scaling.attn_factor", 1.0) != 1.0 or kind not in ("none", "linear", "yarn"):
        raise UnsupportedModel(
            f"{values.path} has rope scaling {kind!r} with attn_factor {values.get('rope.scaling.attn_factor', 1.0)}; "
            "supported are none, linear and yarn, with 1.0"
        )
    if kind == "none" or not factor or factor == 1.0:
        return {"rope_type": "default"}
    original = values.get("rope.scaling.original_context_length")
    known = {"original_max_position_embeddings": original} if kind == "yarn" and original else {}
    return {"rope_type": kind, "factor": factor, **known}


def _llama3(values: Values, base: float, head_dim: int, factors: Sequence[float]) -> dict[str, Any]:
    """The parameters from which these factors were computed. They are checked, since the file names none of them."""
    low, high, original = LLAMA3
    expected = llama3_factors(base, head_dim, max(factors), low, high, original)
    if len(factors) != len(expected) or any(
        abs(found - want) > TOLERANCE * want for found, want in zip(factors, expected, strict=True)
    ):
        raise UnsupportedModel(f"the frequency factors (rope_freqs.weight) of {values.path} are not those of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": float(max(factors)),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def llama3_factors(
    base: float, head_dim: int, factor: float, low: float, high: float, original: int
) -> tuple[float, ...]:
    """What each rotary frequency is divided by."""
    divisors = []
    for index in range(0, head_dim, 2):
        wave = 2 * math.pi * base ** (index / head_dim)
        smooth = (original / wave - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)
