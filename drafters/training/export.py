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


def export_drafter(model: Any, tokenizer: Path, folder: Path, exits: Sequence[int], targets: Sequence[Path]) -> None:
    """Saves `model` in bf16 as safetensors into `folder`, with the tokenizer files of `tokenizer` and draftpool.json.

    The model itself keeps its dtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    Manifest(tuple(exits), vocabulary_hash(folder), tuple(target.name for target in targets)).save(folder)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copies what of TOKENIZER_FILES there is."""
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
