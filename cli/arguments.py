"""Types of command-line arguments. An invalid value is a usage error that names the valid ones."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

from api.seeds import unsigned_seed
from protocol.errors import InvalidRequest


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from low to high."""
    expected = f"a whole number of {low} or more" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        number = _integer(text)
        if number is None or number < low or (high is not None and number > high):
            raise ArgumentTypeError(f"{text!r} is not {expected}")
        return number

    return parse


def depth(text: str) -> int | str:
    number = _integer(text)
    if text != "cascade" and (number is None or number < 1):
        raise ArgumentTypeError(f"{text!r} is not a depth; give an exit of the drafter, counted in layers, or cascade")
    return number or text


def seed(text: str) -> int:
    """A seed; negative ones as two's complement, as over HTTP."""
    number = _integer(text)
    if number is None:
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    try:
        return unsigned_seed(number)
    except InvalidRequest as error:
        raise ArgumentTypeError(str(error)) from None


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
