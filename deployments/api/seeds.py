"""Seeds as callers may give them, and those that are drawn for callers who give none."""

from __future__ import annotations

import secrets

from protocol.errors import InvalidRequest
from protocol.request import SEED_BITS


def draw_seed() -> int:
    return secrets.randbits(SEED_BITS)


def unsigned_seed(seed: int) -> int:
    """Signed 64-bit seeds, which OpenAI's schema allows, stand for their two's complement."""
    if not -(1 << (SEED_BITS - 1)) <= seed < 1 << SEED_BITS:
        raise InvalidRequest(f"seed {seed} does not fit {SEED_BITS} bits", "seed")
    return seed % (1 << SEED_BITS)
