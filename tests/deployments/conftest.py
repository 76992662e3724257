from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.experimental import internal_kv

from targets.engine import Engine
from tests.deployments.served import Served, plain_engine


@pytest.fixture(scope="module")
def oracles(family: Path) -> Iterator[dict[str, Engine]]:
    """The plain loop of each target."""
    with plain_engine(family / "large") as large, plain_engine(family / "small") as small:
        yield {"large": large, "small": small}


@pytest.fixture
def nothing_leaks(served: Served) -> Iterator[None]:
    """The application drafts before the test, and holds no sequence and no page after it."""
    served.wait_until_drafting()
    yield
    served.wait_until_idle()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """What is written into the cluster's control store, which is this."""
    kept: dict[bytes, bytes] = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value, namespace: kept.update({key: value}))
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key, namespace: kept.pop(key))
    monkeypatch.setattr(internal_kv, "_internal_kv_list", lambda prefix, namespace: list(kept))
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: kept.get(key))
    return kept
