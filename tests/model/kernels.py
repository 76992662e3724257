"""What the tests of the native kernels share."""

from __future__ import annotations

from pathlib import Path

import torch

from model.decoder import Decoder
from model.execution import Execution, warn_once, why_not_native
from model.load import load_decoder
from model.native.library import library, thread_pool
from tests.model.families import make_checkpoint


def load(name: str, directory: Path, dtype: torch.dtype, execution: Execution = Execution.NATIVE) -> Decoder:
    return load_decoder(make_checkpoint(name, directory, seed=3), dtype=dtype, execution=execution)


def forget_library() -> None:
    library.cache_clear()
    thread_pool.cache_clear()
    why_not_native.cache_clear()
    warn_once.cache_clear()
