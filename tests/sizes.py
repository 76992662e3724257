"""How much of a sweep `make test` runs; `make test-all` runs all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], num_quick: int) -> list[Any]:
    """The values for parametrize, those behind the first few marked as slow."""
    return [value if i < num_quick else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]
