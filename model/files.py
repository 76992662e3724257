"""Finds the files of a checkpoint: a directory or a GGUF file, here, in an installed package or on the HF hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from model.gguf.unpack import GGUF_NAME, unpack
from model.packages import PREFIX, package_path
from model.trimmed import CHECKPOINT, linked, named, read_reference
from protocol.errors import ConfigError

TEXT_FILES = ("*.json", "*.jinja")  # files of tokenizers and configs
GGUF = ".gguf"
_HUB_FILES = (*TEXT_FILES, "*.safetensors")


def resolve(path_or_id: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """The directory of a checkpoint.

    path_or_id: an existing directory or GGUF file; one in a package (model/packages.py); or a hub id or id@revision,
    which is downloaded to the hub's cache. The id of a GGUF file is owner/name/file.gguf. A GGUF file becomes a
    directory of the cache (model/gguf/unpack.py). Raises ConfigError if it is none of these.
    """
    path = package_path(path_or_id) if path_or_id.startswith(PREFIX) else Path(path_or_id)
    if path.is_file() and path.suffix == GGUF:
        return unpack(path)
    if path.is_dir():
        return _directory(path)
    if _is_path(path_or_id):
        raise ConfigError(f"{path_or_id} is not a directory and not a GGUF file")
    repository, file, _ = _hub_id(path_or_id)
    snapshot = _snapshot(path_or_id, files)
    if not file and (snapshot / "config.json").exists():
        return snapshot
    try:
        found = [file] if file else HfApi().list_repo_files(repository, revision=snapshot.name)
        wanted = _only(repository, [name for name in found if name.endswith(GGUF)])
        return snapshot if wanted is None else unpack(Path(hf_hub_download(repository, wanted, revision=snapshot.name)))
    except (OSError, HfHubHTTPError) as error:
        raise ConfigError(f"the GGUF file of {path_or_id} cannot be loaded from the hub: {error}") from error


def _snapshot(path_or_id: str, files: Sequence[str]) -> Path:
    """The folder of the hub's cache with the files that match; its name is the commit."""
    repository, _, revision = _hub_id(path_or_id)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise ConfigError(f"{path_or_id} is not a directory and cannot be loaded from the hub: {error}") from error


def _hub_id(path_or_id: str) -> tuple[str, str, str | None]:
    """owner/name, the file behind it or "", and the revision."""
    name, _, revision = path_or_id.partition("@")
    parts = name.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None


def _directory(path: Path) -> Path:
    """The directory of a checkpoint: a GGUF file in place of safetensors is unpacked, a trimmed drafter is linked."""
    unpacked = (path / "config.json").exists() and (path / GGUF_NAME).exists()
    if unpacked or any(path.glob("*.safetensors*")):
        return path
    found = _only(str(path), sorted(file.name for file in path.glob(f"*{GGUF}")))
    if found is not None:
        return unpack(path / found)
    manifest = read_reference(path)
    return path if manifest is None else linked(path, manifest, resolve(named(path, manifest[CHECKPOINT])))


def _only(place: str, found: Sequence[str]) -> str | None:
    if len(found) > 1:
        raise ConfigError(f"{place} holds {len(found)} GGUF files; name one of them: {place}/{found[0]}, for example")
    return found[0] if found else None


def _is_path(path_or_id: str) -> bool:
    file = path_or_id.partition("@")[0].endswith(GGUF)
    return path_or_id.startswith((".", "/", "~", PREFIX)) or path_or_id.count("/") > (2 if file else 1)


def pin_revision(path_or_id: str) -> str:
    """A hub id with its current commit, so that all replicas load the same weights.

    A path, or a file of a package, is returned unchanged; it may be on another machine.
    """
    if _is_path(path_or_id) or Path(path_or_id).exists():
        return path_or_id
    return f"{path_or_id.partition('@')[0]}@{_snapshot(path_or_id, TEXT_FILES).name}"
