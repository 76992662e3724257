"""A small random model, as a drafter and as a target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.decoder import Decoder
from model.load import load_decoder
from targets.model import TargetModel, load_target
from tests.model.families import make_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("standins") / "llama", seed=0)


@pytest.fixture(scope="module")
def decoder(llama: Path) -> Decoder:
    return load_decoder(llama, dtype=torch.float32)


@pytest.fixture
def target(llama: Path) -> TargetModel:
    return load_target(llama, dtype=torch.float32, num_positions=4096, page_size=16)
