"""The code family that ships with the project, as tests serve it."""

from __future__ import annotations

from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "demo/models"
NAMES = ("large", "small", "drafter")


def linked(folder: Path) -> Path:
    """The folder, with a link to each model in it. Skips where they are not there."""
    if not (MODELS / "drafter").is_dir():
        pytest.skip("demo/models/drafter is not there; `make demo-models` trains it")
    for name in NAMES:
        (folder / name).symlink_to(MODELS / name)
    return folder
