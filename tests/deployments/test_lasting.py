"""What a collection goes through once a replica has started: what came since, and nothing that was there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from deployments.lasting import keep


class Knot:
    """Garbage that only a collection finds, once nobody has it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_there_is_not_gone_through_and_what_comes_later_is() -> None:
    before = len(gc.get_objects())
    keep()
    assert len(gc.get_objects()) < before / 100
    assert gc.get_freeze_count() > before / 2
    later = Knot()
    seen = weakref.ref(later)
    del later
    gc.collect()
    assert seen() is None


def test_garbage_that_was_there_is_not_kept() -> None:
    knot = Knot()
    seen = weakref.ref(knot)
    del knot
    keep()
    assert seen() is None
