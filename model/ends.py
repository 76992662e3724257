"""Which tokens end an answer, by the files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError


def stops_of_generate(directory: Path) -> tuple[int, ...]:
    """The ids that end an answer of transformers' generate: generation_config.json wins when it names any."""
    return _named_eos(directory / "generation_config.json") or _named_eos(directory / "config.json")


def configured_eos(directory: Path) -> tuple[int, ...]:
    """Of both files: where one of them is wrong, an answer that ends is worth more than one that never does. What a
    config class takes where its file names none is not among them.
    """
    files = (directory / "generation_config.json", directory / "config.json")
    return tuple(dict.fromkeys(index for file in files for index in _named_eos(file)))


def _named_eos(path: Path) -> tuple[int, ...]:
    ids = read_json(path).get("eos_token_id") if path.exists() else None
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give a directory that save_pretrained wrote") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not an object")
    return value
