"""Numbers and lengths as they come off the wire, held to their ranges. Everything here raises ValueError."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import isfinite
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from protocol.limits import MAX_DEPTH, MAX_EXITS, MAX_LENGTH, MAX_POSITION, MAX_TOKEN
from protocol.pb import draft_pb2 as pb
from protocol.plan import DepthRule

REMEDY = "deploy both sides from one version"

M = TypeVar("M", bound=Message)


def parsed(kind: type[M], data: bytes, most: int) -> M:
    if len(data) > most:
        raise ValueError(f"a message of {len(data)} bytes came, {most} are allowed; {REMEDY}")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ValueError(f"what came is no message ({str(error)[:80]}); {REMEDY}") from None


def within(name: str, value: float, low: float, high: float) -> float:
    """Not so for NaN."""
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not in [{low}, {high}]; {REMEDY}")
    return value


def at_most(name: str, number: int, most: int) -> int:
    if number > most:
        raise ValueError(f"{number} {name}, {most} are allowed; {REMEDY}")
    return number


def shares(name: str, values: Iterable[float]) -> tuple[float, ...]:
    """Each in [0, 1], but for the last bit of a sum of float32."""
    found = tuple(values)
    if not found or (isfinite(sum(found)) and min(found) >= 0.0 and max(found) <= 1.0):
        return found
    return tuple(min(within(name, value, 0.0, 1.00001), 1.0) for value in found)


def tokens(values: Iterable[int]) -> tuple[int, ...]:
    found = tuple(values)
    if found and max(found) > MAX_TOKEN:
        raise ValueError(f"token id {max(found)} is beyond {MAX_TOKEN}; {REMEDY}")
    return found


def draft(message: pb.DraftBlock | pb.Branch) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Tokens, and for each its exit and its confidence."""
    ids, exits, confidences = tuple(message.tokens), tuple(message.exits), tuple(message.confidences)
    same_length("exits", exits, len(ids))
    same_length("confidences", confidences, len(ids))
    if not ids:
        return (), (), ()
    at_most("tokens of a draft", len(ids), MAX_LENGTH)
    if max(ids) > MAX_TOKEN:
        raise ValueError(f"token id {max(ids)} is beyond {MAX_TOKEN}; {REMEDY}")
    if not 0 < min(exits) <= max(exits) <= MAX_DEPTH:
        raise ValueError(f"exits {exits} are not in [1, {MAX_DEPTH}]; {REMEDY}")
    return ids, exits, shares("a confidence", confidences)


def same_length(name: str, values: Collection[Any], num_tokens: int) -> None:
    if len(values) != num_tokens:
        raise ValueError(f"{len(values)} {name} came with {num_tokens} tokens; {REMEDY}")


def rule(exits: Sequence[int], thresholds: Iterable[float]) -> DepthRule:
    at_most("exits of a depth rule", len(exits), MAX_EXITS)
    made = DepthRule(tuple(exits), tuple(thresholds))
    within("an exit", made.exits[0], 1, MAX_DEPTH)
    within("an exit", made.exits[-1], 1, MAX_DEPTH)
    shares("a threshold", made.thresholds)
    return made


def positions(start: int, num_tokens: int) -> None:
    if start + num_tokens > MAX_POSITION:
        raise ValueError(f"a position {start + num_tokens} is not in [0, {MAX_POSITION}]; {REMEDY}")


def unique(ids: Sequence[int]) -> None:
    if len(set(ids)) != len(ids):
        raise ValueError(f"a sequence comes twice in one message; {REMEDY}")
