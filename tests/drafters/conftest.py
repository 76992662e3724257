from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.decoder import Decoder
from model.load import load_decoder
from tests.drafters.clients import CLIENTS, Connect
from tests.drafters.pool import Clock
from tests.model.families import EXECUTIONS, make_checkpoint


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("drafter") / "llama", seed=1)


@pytest.fixture(scope="session", params=EXECUTIONS)
def llama(llama_directory: Path, request: pytest.FixtureRequest) -> Decoder:
    """Four random layers in fp32, a vocabulary of 160 and 256 positions."""
    return load_decoder(llama_directory, dtype=torch.float32, execution=request.param)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """As `llama`, with sliding windows and soft-capping."""
    directory = make_checkpoint("gemma2", tmp_path_factory.mktemp("drafter") / "gemma2", seed=2)
    return load_decoder(directory, dtype=torch.float32)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CLIENTS, ids=lambda connect: connect.__name__)
def connect(request: pytest.FixtureRequest) -> Connect:
    chosen: Connect = request.param
    return chosen


@pytest.fixture
def worker(llama: Decoder) -> DraftWorker:
    """Its clock stands still: no deadline comes but those that a test makes."""
    drafter = NestedDrafter(llama, (1, 2, 4), num_pages=32, page_size=8)
    return DraftWorker(drafter, PoolLimits(max_rows=4), Clock())
