"""The prompts of a command line: one of its arguments, or the lines of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.seeds import unsigned_seed
from protocol.errors import ConfigError, InvalidRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """place: where it was written, for complaints."""

    text: str
    seed: int
    place: str


def read_prompts(path: Path, seed: int) -> list[Prompt]:
    """One per line of JSON; seed: of lines without one. Raises ConfigError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name an existing file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; write one JSON object a line") from None
    places = [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not places:
        raise ConfigError(f"{path} holds no prompt; write one JSON object a line")
    return [_prompt_line(line, place, seed) for place, line in places]


def _prompt_line(line: str, place: str, default_seed: int) -> Prompt:
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
        return Prompt(fields["prompt"], unsigned_seed(seed), place)
    except InvalidRequest as error:
        raise ConfigError(f"{place}: {error}") from None
