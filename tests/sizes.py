"""How much of a sweep `make test` runs; `make test-all` runs all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], num_quick: int) -> list[Any]:
    """The values for parametrize, or tuples of them, those behind the first few marked as slow."""
    sets = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*each, marks=() if i < num_quick else pytest.mark.slow) for i, each in enumerate(sets)]
