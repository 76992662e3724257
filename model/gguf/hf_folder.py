"""Writes a GGUF file as a HF checkpoint: dense safetensors of a bounded size, config and tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.checkpoint import Checkpoint
from model.load import Progress, check_weights

SHARD_BYTES = 1 << 30
_COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")


def write_hf_folder(
    directory: Path, out: Path, dtype: torch.dtype, progress: Progress, shard_bytes: int = SHARD_BYTES
) -> None:
    """directory: what model.gguf.unpack made. progress: called with the tensors done, and all.

    Raises UnsupportedModel or ConfigError before anything is written, if a tensor is missing or unknown.
    """
    check_weights(directory)
    checkpoint = Checkpoint(directory, dtype, torch.device("cpu"))
    out.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(checkpoint.shapes, shard_bytes // dtype.itemsize)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name_of_file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = checkpoint.read(name)
            weight_map[name] = name_of_file
            progress(len(weight_map), len(checkpoint.shapes))
        save_file(tensors, out / name_of_file, metadata={"format": "pt"})
    if len(shards) > 1:
        total = dtype.itemsize * sum(map(math.prod, checkpoint.shapes.values()))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_texts(directory, out, dtype)


def plan_shards(shapes: Mapping[str, tuple[int, ...]], most: int) -> list[list[str]]:
    """Names by shard, each of at most `most` numbers or of one tensor."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        if not shards or math.prod(shape) > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= math.prod(shape)
    return shards


def _write_texts(directory: Path, out: Path, dtype: torch.dtype) -> None:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    del config["gguf_formats"]
    config["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        shutil.copyfile(directory / name, out / name)
