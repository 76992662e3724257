"""JSON of a large body, made in pieces: the encoder keeps all other threads of the process waiting while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MOST = 64  # elements of a list that are encoded at a time


def encode(body: Any) -> bytes:
    """As Starlette's JSONResponse encodes it."""
    return b"".join(piece.encode() for piece in pieces(body))


def pieces(value: Any) -> Iterator[str]:
    """They join to the JSON of the value."""
    if isinstance(value, dict) and value:
        for at, (name, each) in enumerate(value.items()):
            yield f"{',' if at else '{'}{_dumps(name)}:"
            yield from pieces(each)
        yield "}"
    elif isinstance(value, list) and len(value) > MOST:
        for at in range(0, len(value), MOST):
            yield f"{',' if at else '['}{_dumps(value[at : at + MOST])[1:-1]}"
        yield "]"
    elif isinstance(value, list) and value:
        for at, each in enumerate(value):
            yield "," if at else "["
            yield from pieces(each)
        yield "]"
    else:
        yield _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
