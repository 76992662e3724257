"""Numbers and lengths as they come off the wire, held to their ranges. Everything here raises ValueError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from protocol.limits import MAX_DEPTH, MAX_LENGTH, MAX_POSITION, MAX_TOKEN

REMEDY = "deploy both sides from one version"


def within(name: str, value: float, low: float, high: float) -> float:
    """NaN is within nothing."""
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not in [{low}, {high}]; {REMEDY}")
    return value


def at_most(name: str, number: int, most: int) -> int:
    if number > most:
        raise ValueError(f"{number} {name}, {most} are allowed; {REMEDY}")
    return number


def shares(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """Each in [0, 1], but for the last bit of a sum of float32."""
    numbers = tuple(values)
    if not numbers or (isfinite(sum(numbers)) and min(numbers) >= 0.0 and max(numbers) <= 1.0):
        return numbers
    return tuple(min(within(name, number, 0.0, 1.00001), 1.0) for number in numbers)


def tokens(values: Iterable[int]) -> tuple[int, ...]:
    ids = tuple(values)
    if ids and max(ids) > MAX_TOKEN:
        raise ValueError(f"token id {max(ids)} is beyond {MAX_TOKEN}; {REMEDY}")
    return ids


def exits(values: Iterable[int]) -> tuple[int, ...]:
    depths = tuple(values)
    if depths and not 0 < min(depths) <= max(depths) <= MAX_DEPTH:
        raise ValueError(f"exits {depths} are not in [1, {MAX_DEPTH}]; {REMEDY}")
    return depths


def positions(start: int, num_tokens: int) -> None:
    if start + num_tokens > MAX_POSITION:
        raise ValueError(f"a position {start + num_tokens} is not in [0, {MAX_POSITION}]; {REMEDY}")


def draft(message: Any) -> None:
    """Where it stands, and that each of its tokens has a confidence."""
    num_tokens = at_most("tokens of a draft", len(message.tokens), MAX_LENGTH)
    positions(message.base_length, num_tokens)
    if (num_told := len(message.confidences)) != num_tokens:
        raise ValueError(f"{num_told} confidences came with {num_tokens} tokens; {REMEDY}")


def unique(ids: Sequence[int]) -> None:
    if len(set(ids)) != len(ids):
        raise ValueError(f"a sequence comes twice in one message; {REMEDY}")
