"""Finds the files of a checkpoint: a directory, or a Hugging Face hub id, which is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from protocol.errors import ConfigError

TEXT_FILES = ("*.json", "*.jinja")  # files of tokenizers and configs
_HUB_FILES = (*TEXT_FILES, "*.safetensors")


def resolve(path_or_id: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """The directory of a checkpoint.

    path_or_id: an existing directory, or a hub id or id@revision, which is downloaded to the hub's cache. Raises
    ConfigError if it is neither.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if _is_path(path_or_id):
        raise ConfigError(f"{path_or_id} is not a directory")
    name, _, revision = path_or_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:
        raise ConfigError(f"{path_or_id} is not a directory and cannot be loaded from the hub: {error}") from error


def _is_path(path_or_id: str) -> bool:
    return path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1


def pin_revision(path_or_id: str) -> str:
    """A hub id with its current commit, so that all replicas load the same weights.

    A path is returned unchanged; it may be on another machine.
    """
    if _is_path(path_or_id) or Path(path_or_id).is_dir():
        return path_or_id
    return f"{path_or_id.partition('@')[0]}@{resolve(path_or_id, TEXT_FILES).name}"
