"""Writes a trained drafter: HF weights and config, the tokenizer, and the manifest."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from drafters.manifest import Manifest, vocabulary_hash

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def export_checkpoint(model: Any, tokenizer: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Saves `model` in `dtype` as safetensors into `folder`, with the tokenizer files of `tokenizer`.

    The model itself keeps its dtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to("cpu", dtype).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)


def export_drafter(model: Any, tokenizer: Path, folder: Path, exits: Sequence[int], targets: Sequence[Path]) -> None:
    """`export_checkpoint`, and draftpool.json beside it."""
    export_checkpoint(model, tokenizer, folder)
    names = tuple(target.name for target in targets)
    Manifest(tuple(exits), vocabulary_hash(folder), names).save(folder)
