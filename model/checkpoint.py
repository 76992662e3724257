"""The tensors of a checkpoint directory, by their HF names: from safetensors files, or from a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.blocks import BlockFormat, Blocks
from model.gguf.tensors import GgufCheckpoint
from model.gguf.unpack import GGUF_NAME
from model.quantized import Matrix, QuantizedMatrix
from protocol.errors import ConfigError, UnsupportedModel


class TensorSource(Protocol):
    """The tensors of a directory, by their HF names."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def copy(self, name: str, into: Tensor) -> None:
        """Writes a tensor into `into`, in its dtype and on its device."""

    def blocks(self, name: str) -> Blocks | None:
        """A matrix as stored in a format of few bits; None: it is stored dense."""


class SafetensorsFiles:
    """The tensors of one or several safetensors files.

    A file is closed after each read, because the pages of a mapped file stay in memory as long as it is open.
    """

    def __init__(self, directory: Path) -> None:
        self._path_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(directory):
            with _opened(path) as file:
                names = file.keys()
                self._path_of.update(dict.fromkeys(names, path))
                self.shapes.update((name, tuple(file.get_slice(name).get_shape())) for name in names)

    def copy(self, name: str, into: Tensor) -> None:
        with _opened(self._path_of[name]) as file:
            into.copy_(file.get_tensor(name))

    def blocks(self, name: str) -> Blocks | None:
        return None


class GgufTensors:
    """The tensors of a GGUF file, made dense a few rows at a time."""

    def __init__(self, path: Path) -> None:
        self.checkpoint = GgufCheckpoint(path)
        self.shapes = self.checkpoint.shapes

    def copy(self, name: str, into: Tensor) -> None:
        step = self.checkpoint.chunk(name)
        for start in range(0, len(into), step):
            stop = min(start + step, len(into))
            into[start:stop].copy_(torch.from_numpy(self.checkpoint.dense(name, start, stop)))
        self.checkpoint.release()

    def blocks(self, name: str) -> Blocks | None:
        blocks = self.checkpoint.blocks(name)
        return None if blocks.format in (BlockFormat.F32, BlockFormat.F16, BlockFormat.BF16) else blocks


def tensor_source(directory: Path) -> TensorSource:
    """Raises ConfigError if the directory holds no weights, or damaged ones."""
    gguf = directory / GGUF_NAME
    return GgufTensors(gguf) if gguf.exists() else SafetensorsFiles(directory)


class Checkpoint:
    """The tensors of a directory in one dtype, on one device."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.directory = directory
        self.dtype = dtype
        self.device = device
        self._source = tensor_source(directory)

    def check(self, shapes: dict[str, tuple[int, ...]], optional: frozenset[str]) -> None:
        """Raises unless the files hold exactly these tensors. Ignores stored rotary frequencies."""
        names = {name for name in self.shapes if not name.endswith("rotary_emb.inv_freq")}
        if missing := sorted(shapes.keys() - names):
            raise ConfigError(f"{self.directory} lacks tensors that its config.json promises: {_some(missing)}")
        if unexpected := sorted(names - shapes.keys() - optional):
            raise UnsupportedModel(
                f"{self.directory} holds tensors that its config.json does not explain: {_some(unexpected)}"
            )
        for name, shape in shapes.items():
            found = self.shapes[name]
            if found != shape:
                raise ConfigError(f"{name} of {self.directory} has shape {found}; its config.json says {shape}")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._source.shapes

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def read(self, *names: str) -> Tensor:
        """A new tensor in the model's dtype: the named tensors concatenated along the first dimension."""
        shapes = [self.shapes[name] for name in names]
        rows = [shape[0] for shape in shapes]
        whole = torch.empty((sum(rows), *shapes[0][1:]), dtype=self.dtype, device=self.device)
        for name, part in zip(names, torch.split(whole, rows), strict=True):
            self._source.copy(name, part)
        return whole

    def read_as_stored(self, *names: str) -> Matrix:
        """The same, in blocks if all of the named matrices are stored in blocks."""
        parts = [blocks for name in names if (blocks := self._source.blocks(name)) is not None]
        return QuantizedMatrix(tuple(parts)) if len(parts) == len(names) else self.read(*names)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged or cut short ({error}); fetch it again") from None


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [directory / name for name in sorted(names)]
        if absent := [file.name for file in files if not file.exists()]:
            raise ConfigError(f"{directory} lacks shards that its index names: {_some(absent)}")
        return files
    remedy = "save it with model.save_pretrained(directory), which writes safetensors"
    if any(directory.glob("*.bin")):
        raise ConfigError(f"{directory} holds pickled .bin weights, which are never loaded; {remedy}")
    raise ConfigError(f"{directory} holds no model.safetensors and no index of shards; {remedy}")


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
