from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked files of a test lie in a folder of its own."""
    monkeypatch.setattr("model.gguf.unpack.cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache"
