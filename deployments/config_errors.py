"""Turns pydantic's errors about a config into messages that name the key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Key = int | str
Section = type[BaseModel]


def explain(error: ValidationError, model: Section) -> str:
    """One clause per error. Skips "too short" errors of collections whose items have errors themselves."""
    problems = error.errors()
    return "; ".join(
        _describe(problem, model)
        for problem in problems
        if not (problem["type"] == "too_short" and any(_inside(other, problem) for other in problems))
    )


def _inside(problem: ErrorDetails, outer: ErrorDetails) -> bool:
    return problem is not outer and problem["loc"][: len(outer["loc"])] == outer["loc"]


def _describe(problem: ErrorDetails, model: Section) -> str:
    keys, section, others = _place(problem["loc"], model)
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "the config"
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: {_remedy(str(keys[-1]), problem['input'], section, others)}"
        case "missing":
            return f"{where}: missing; add it"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}"
        case "union_tag_invalid":
            known, given = problem["ctx"]["expected_tags"].replace("'", ""), problem["input"]["policy"]
            return f"{where}.policy: {given!r} is not a policy; choose one of {known}, or speculation: off"
        case "model_type" | "union_tag_not_found":
            return f"{where}: a mapping of keys is needed, got {problem['input']!r}"
    field = section.model_fields.get(str(keys[-1])) if keys else None
    remedy = f"; give {field.description}" if field and field.description else ""
    return f"{where}: {problem['msg']}, got {problem['input']!r}{remedy}"


def _place(loc: Sequence[Key], model: Section) -> tuple[list[Key], Section, list[Section]]:
    """The keys as the file has them, the section of the last one, and its twins of other policies.

    For a union of sections pydantic adds the name of the policy to the keys.
    """
    keys: list[Key] = []
    section, others, below = model, list[Section](), [model]
    for key in loc:
        if len(below) > 1 and (chosen := [one for one in below if _policy(one) == key]):
            others, below = [one for one in below if one not in chosen], chosen
        elif key != "[key]":  # pydantic's marker for a wrong key of a mapping; the key before it names it
            keys.append(key)
            if isinstance(key, str) and below:
                section = below[0]
                known = section.model_fields.get(key)
                below = list(_sections(known.annotation)) if known else []
    return keys, section, others


def _remedy(key: str, value: object, section: Section, others: Sequence[Section]) -> str:
    if owners := [_policy(other) for other in others if key in other.model_fields]:
        this = _policy(section)
        return f"belongs to policy {' or '.join(owners)}, this is {this}; set policy: {owners[0]}, or remove it"
    known = sorted(section.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}, or remove it"
    return f"unknown key (value {value!r}); {remedy}"


def _policy(section: Section) -> str:
    """The name of a section's policy."""
    return str(get_args(section.model_fields["policy"].annotation)[0])


def _sections(annotation: Any) -> Iterator[Section]:
    """The section types inside an annotation such as `PoolConfig | None` or `tuple[TargetConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _sections(part)
