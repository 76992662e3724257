"""Where a checkpoint's files are: a directory, or those of a Hugging Face hub id, which are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from protocol.errors import ConfigError

TEXT_FILES = ("*.json", "*.jinja")  # tokenizers and configs
_HUB_FILES = (*TEXT_FILES, "*.safetensors")


def resolve(path_or_id: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """An existing directory as it is; else a Hugging Face hub id, or id@revision, whose files are downloaded to the
    hub's cache.
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
        raise ConfigError(f"{path_or_id} is neither a directory nor to be had from the hub: {error}") from error


def _is_path(path_or_id: str) -> bool:
    return path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1


def pinned(path_or_id: str) -> str:
    """A hub id with the commit that it stands for now, so that all who resolve it later have the same weights. A path
    as it is, for it may be one of another machine.
    """
    if _is_path(path_or_id) or Path(path_or_id).is_dir():
        return path_or_id
    return f"{path_or_id.partition('@')[0]}@{resolve(path_or_id, TEXT_FILES).name}"
