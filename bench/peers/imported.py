"""A checkpoint as other programs read it: a GGUF file becomes a dense folder, as by `draftpool import`."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.cells import Unavailable
from bench.machine import ROOT
from model.config import read_config
from model.gguf.hf_folder import write_hf_folder
from model.gguf.unpack import GGUF_NAME, made_once


def imported(model: Path, dtype: torch.dtype) -> Path:
    """Raises Unavailable for a drafter with a trimmed head, which only we read."""
    if read_config(model).head_token_ids:
        raise Unavailable(f"the head of {model.name} is trimmed; give the checkpoint behind it")
    if not (model / GGUF_NAME).exists():
        return model
    folder = ROOT / "bench/.cache/imported" / f"{model.name}-{str(dtype).removeprefix('torch.')}"
    if not folder.is_dir():
        made_once(folder, lambda part: write_hf_folder(model, part, dtype, lambda done, total: None))
    return folder
