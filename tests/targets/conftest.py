from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.decoder import Decoder
from model.execution import Execution
from model.load import load_decoder
from targets.model import TargetModel, load_target
from tests.model.families import make_checkpoint

LoadTarget = Callable[..., TargetModel]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("target") / "llama", seed=0)


@pytest.fixture(scope="session")
def drafter(llama: Path) -> Decoder:
    """The target's own layers: at full depth it is always right, at others sometimes."""
    return load_decoder(llama, dtype=torch.float32)


@pytest.fixture
def load(llama: Path) -> LoadTarget:
    """A tiny fp32 target with as many KV positions as asked for."""

    def loader(num_positions: int = 4096, page_size: int = 16, execution: Execution = Execution.AUTO) -> TargetModel:
        return load_target(
            llama, dtype=torch.float32, num_positions=num_positions, page_size=page_size, execution=execution
        )

    return loader
