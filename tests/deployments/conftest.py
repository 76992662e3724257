from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.experimental import internal_kv

from targets.engine import Engine
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.served import Served, plain_engine

Store = dict[tuple[bytes, bytes], bytes]  # by namespace and key


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


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """What is written into the cluster's control store, which is this."""
    kept: Store = {}

    def put(key: bytes, value: bytes, namespace: bytes) -> None:
        kept[namespace, key] = value

    def listed(prefix: bytes, namespace: bytes) -> list[bytes]:
        return [key for space, key in kept if space == namespace]

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key, namespace: kept.pop((namespace, key)))
    monkeypatch.setattr(internal_kv, "_internal_kv_list", listed)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: kept.get((namespace, key)))
    return kept
