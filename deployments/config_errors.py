"""What pydantic found wrong with a config, in words that name the key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Key = int | str


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause per problem. A collection that is short only because its items are wrong is not mentioned."""
    problems = error.errors()
    return "; ".join(
        _describe(problem, model)
        for problem in problems
        if not (problem["type"] == "too_short" and any(_inside(other, problem) for other in problems))
    )


def _inside(problem: ErrorDetails, outer: ErrorDetails) -> bool:
    return problem is not outer and problem["loc"][: len(outer["loc"])] == outer["loc"]


def _describe(problem: ErrorDetails, model: type[BaseModel]) -> str:
    keys = problem["loc"]
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "the config"
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key (value {problem['input']!r}); {_remedy(keys, model)}"
        case "missing":
            return f"{where}: missing; add it"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}"
        case "model_type":
            return f"{where}: a mapping of keys is needed, got {problem['input']!r}"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _remedy(keys: Sequence[Key], model: type[BaseModel]) -> str:
    for key in keys[:-1]:
        if isinstance(key, str):
            model = next(_sections(model.model_fields[key].annotation))
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(str(keys[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}, or remove it"


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section types inside an annotation such as `PoolConfig | None` or `tuple[TargetConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _sections(part)
