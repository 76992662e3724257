"""The logit_bias of a request: an object whose keys are token ids, written as strings because JSON has no others."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

from protocol.errors import InvalidRequest
from protocol.logit_rules import MAX_BIASED

MAX_DIGITS = 10


def read_bias(fields: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Biases by token, ascending. Raises InvalidRequest for a key that is no token id, or for too many."""
    if len(fields) > MAX_BIASED:
        raise InvalidRequest(f"logit_bias has {len(fields)} tokens; send {MAX_BIASED} at most", "logit_bias")
    return tuple(sorted((_token(key), bias) for key, bias in fields.items()))


def _token(key: str) -> int:
    if len(key) > MAX_DIGITS or not (key.isascii() and key.isdigit()) or str(int(key)) != key:
        raise InvalidRequest(f'logit_bias key {reprlib.repr(key)} is no token id; send one like "42"', "logit_bias")
    return int(key)
