"""Seeds: from the caller, drawn if the caller gives none, and derived for further choices."""

from __future__ import annotations

import secrets
from hashlib import sha256

from protocol.errors import InvalidRequest
from protocol.request import SEED_BITS

EXACT_BITS = 53  # bits of an integer that every JSON reader keeps


def draw_seed() -> int:
    return secrets.randbits(EXACT_BITS)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one choice: the request's for choice 0, the first 53 bits of SHA-256 of "seed:choice" for others."""
    if choice == 0:
        return seed
    digest = sha256(f"{unsigned_seed(seed)}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - EXACT_BITS)


def unsigned_seed(seed: int) -> int:
    """The seed as an unsigned 64-bit integer; negative ones, which OpenAI allows, as two's complement.

    Raises InvalidRequest if it does not fit.
    """
    if not -(1 << (SEED_BITS - 1)) <= seed < 1 << SEED_BITS:
        raise InvalidRequest(f"seed {seed} does not fit {SEED_BITS} bits", "seed")
    return seed % (1 << SEED_BITS)
