"""What the files of a checkpoint say of tokens: which end an answer, and the key for those of a trimmed head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError

HEAD_TOKEN_IDS = "head_token_ids"  # the key of config.json with the tokens of a trimmed head


def generation_eos(directory: Path) -> tuple[int, ...]:
    """The ids that end an answer in transformers' generate: those of generation_config.json, else of config.json."""
    return _named_eos(directory / "generation_config.json") or _named_eos(directory / "config.json")


def configured_eos(directory: Path) -> tuple[int, ...]:
    """The EOS ids that both files name.

    Both count, because if one of them is wrong, an answer that ends early is better than one that never ends. Defaults
    of config classes do not count.
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
