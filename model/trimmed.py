"""A drafter that is another checkpoint with fewer rows in its LM head: a folder with only a draftpool.json.

The file names the checkpoint (`checkpoint`: a path from the folder, or as in a config) and the tokens of the rows
(`head_token_ids`). It becomes a directory of the cache: links to the checkpoint's files, and a config.json of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.ends import HEAD_TOKEN_IDS
from model.gguf.unpack import MANIFEST_NAME, made_once
from model.native.compiler import cache_directory
from protocol.errors import ConfigError

CHECKPOINT = "checkpoint"


def read_reference(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of such a folder; None for another folder. Raises ConfigError if it names no checkpoint."""
    path = folder / MANIFEST_NAME
    if not path.exists() or (folder / "config.json").exists() or any(folder.glob("*.gguf")):
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get(CHECKPOINT), str) or HEAD_TOKEN_IDS not in values:
        raise ConfigError(f"{folder} holds no weights, and its {MANIFEST_NAME} names no {CHECKPOINT}; trim it again")
    return values


def named(folder: Path, checkpoint: str) -> str:
    """The path of the named checkpoint. Raises ConfigError if that is such a folder too."""
    beside = folder / checkpoint
    if read_reference(beside) is not None:
        raise ConfigError(f"{folder} trims {beside}, which is trimmed already; name the checkpoint behind it")
    return str(beside.resolve()) if beside.exists() else checkpoint


def linked(folder: Path, manifest: Mapping[str, Any], checkpoint: Path) -> Path:
    """The directory of the cache. checkpoint: the directory that the manifest names."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    own = config | {HEAD_TOKEN_IDS: manifest[HEAD_TOKEN_IDS], "tie_word_embeddings": False}
    kept = {key: value for key, value in manifest.items() if key not in (CHECKPOINT, HEAD_TOKEN_IDS)}
    texts = {"config.json": json.dumps(own), MANIFEST_NAME: json.dumps(kept)}
    digest = hashlib.sha256(repr([str(checkpoint), sorted(texts.items())]).encode()).hexdigest()
    directory = cache_directory() / "trimmed" / f"{folder.name}-{digest[:12]}"

    def fill(part: Path) -> None:
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        for file in checkpoint.iterdir():
            if file.name not in texts:
                (part / file.name).symlink_to(file.resolve())

    return directory if directory.is_dir() else made_once(directory, fill)
