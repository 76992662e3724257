"""Seeds as callers may give them, those that are drawn for callers who give none, and those of further choices."""

from __future__ import annotations

import secrets
from hashlib import sha256

from protocol.errors import InvalidRequest
from protocol.request import SEED_BITS

EXACT_BITS = 53  # of a number in JSON, whatever reads it


def draw_seed() -> int:
    return secrets.randbits(EXACT_BITS)


def choice_seed(seed: int, choice: int) -> int:
    """Of each choice of a call: choice 0 has the seed, others the first 53 bits of SHA-256 over "seed:choice"."""
    if choice == 0:
        return seed
    digest = sha256(f"{unsigned_seed(seed)}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - EXACT_BITS)


def unsigned_seed(seed: int) -> int:
    """Signed 64-bit seeds, which OpenAI's schema allows, stand for their two's complement."""
    if not -(1 << (SEED_BITS - 1)) <= seed < 1 << SEED_BITS:
        raise InvalidRequest(f"seed {seed} does not fit {SEED_BITS} bits", "seed")
    return seed % (1 << SEED_BITS)
