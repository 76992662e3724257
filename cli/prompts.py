"""Reads prompts from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.seeds import unsigned_seed
from protocol.errors import ConfigError, InvalidRequest


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A prompt and its seed. place: file and line, for error messages."""

    text: str
    seed: int
    place: str


def read_prompts(path: Path, seed: int) -> list[PromptLine]:
    """The prompts of a file with one JSON object per line. seed: default. Raises ConfigError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name an existing file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; write one JSON object per line") from None
    places = [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not places:
        raise ConfigError(f"{path} holds no prompt; write one JSON object per line")
    return [_prompt_line(line, place, seed) for place, line in places]


def _prompt_line(line: str, place: str, default_seed: int) -> PromptLine:
    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error.msg}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise ConfigError(f'{place} needs an object with a "prompt" string')
    seed = fields.get("seed", default_seed)
    if type(seed) is not int:
        raise ConfigError(f'{place}: "seed" must be a whole number')
    try:
        return PromptLine(fields["prompt"], unsigned_seed(seed), place)
    except InvalidRequest as error:
        raise ConfigError(f"{place}: {error}") from None
