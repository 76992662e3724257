"""Types of command-line arguments. An invalid value is a usage error that names the valid ones."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from api.seeds import unsigned_seed
from protocol.errors import ConfigError, InvalidRequest

T = TypeVar("T")
ALL = "*"  # stands for every target that is not named


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from low to high."""
    return _number(int, "a whole number", low, high)


def real(low: float, high: float | None = None) -> Callable[[str], float]:
    """A finite number from low to high."""
    return _number(float, "a number", low, high)


def _number(kind: Callable[[str], T], name: str, low: float, high: float | None) -> Callable[[str], T]:
    expected = f"{name} of {low} or more" if high is None else f"{name} from {low} to {high}"

    def parse(text: str) -> T:
        number = _converted(kind, text)
        if number is None or not low <= number <= (sys.float_info.max if high is None else high):  # type: ignore[operator]
            raise ArgumentTypeError(f"{text!r} is not {expected}")
        return number

    return parse


def several(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values with commas between them, none twice."""
    return lambda text: list(dict.fromkeys(parse(part.strip()) for part in text.split(",")))


def one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ArgumentTypeError(f"{text!r} is unknown; choose from {', '.join(names)}")
        return text

    return parse


def by_name(parse: Callable[[str], T]) -> Callable[[str], Mapping[str, T]]:
    """One value for ALL, or NAME:VALUE,... with every name once."""

    def parse_all(text: str) -> Mapping[str, T]:
        pairs = [part.rpartition(":") for part in text.split(",")]
        values = {name if colon else ALL: parse(value) for name, colon, value in pairs}
        if len(values) < len(pairs) or (ALL in values and len(values) > 1):
            raise ArgumentTypeError(f"{text!r} is neither one value nor NAME:VALUE,... with every name once")
        return values

    return parse_all


def rates(text: str) -> Mapping[int, float]:
    """Shares by depth: DEPTH:RATE,..."""
    pairs = [part.partition(":") for part in text.split(",")]
    if not all(colon for _, colon, _ in pairs):
        raise ArgumentTypeError(f"{text!r} is not DEPTH:RATE,..., such as 2:0.6,4:0.7")
    return {whole(1)(depth): real(0, 1)(rate) for depth, _, rate in pairs}


def seed(text: str) -> int:
    """A seed; negative ones as two's complement, as over HTTP."""
    number = _converted(int, text)
    if number is None:
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    try:
        return unsigned_seed(number)
    except InvalidRequest as error:
        raise ArgumentTypeError(str(error)) from None


def check_folder(option: str, path: Path | None) -> None:
    """Raises ConfigError unless the file can be made once there is something to write, or none is asked for."""
    if path and not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; create it, or name another")


def _converted(kind: Callable[[str], T], text: str) -> T | None:
    try:
        return kind(text)
    except ValueError:
        return None
