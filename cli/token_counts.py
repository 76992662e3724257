"""How often targets wrote each token: what /debug/tokens of a server tells, or a file with the same, for a drafter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cli.server import ask
from drafters.head import Counts
from protocol.errors import ConfigError

REMEDY = "set count_tokens: true of a target with that vocabulary, and let it answer"
Index = Annotated[int, Field(ge=0)]


class Written(BaseModel):
    """By one target. vocabulary_hash: None while no replica answers."""

    model_config = ConfigDict(extra="forbid")

    vocabulary_hash: str | None
    counts: dict[Index, Index]


Told = TypeAdapter(dict[str, Written])


def read_counts(given: str, vocab_size: int, vocabulary: str) -> Counts:
    """Of all targets with the drafter's vocabulary together, [vocab_size]. vocabulary: its hash.

    Raises ConfigError where none of them has counted anything.
    """
    counts = np.zeros(vocab_size, np.int64)
    for written in _told(given).values():
        if written.vocabulary_hash != vocabulary:
            continue
        for token, count in written.counts.items():
            if token >= vocab_size:
                raise ConfigError(f"{given} counts token {token}; the drafter has {vocab_size}")
            counts[token] += count
    if not counts.any():
        raise ConfigError(f"{given} has no counts of the drafter's vocabulary; {REMEDY}")
    return counts


def _told(given: str) -> dict[str, Written]:
    if given.startswith(("http://", "https://")):
        return _checked(given, ask(given, "/debug/tokens"))
    try:
        values = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {given}: {error}; give a server's URL, or its /debug/tokens") from None
    return _checked(given, values)


def _checked(given: str, values: object) -> dict[str, Written]:
    try:
        return Told.validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"{given} is not what /debug/tokens tells: {error.errors()[0]['msg']}") from None
