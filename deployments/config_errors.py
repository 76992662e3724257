"""Turns pydantic's errors about a config into messages that name the key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Key = int | str
Section = type[BaseModel]


@dataclass
class _Place:
    """The place of an error.

    keys: the path in the file. section: the section that the last key belongs to. twins: sections of other policies.
    """

    keys: list[Key] = field(default_factory=list)
    section: Section | None = None
    twins: list[Section] = field(default_factory=list)

    def __str__(self) -> str:
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)
        return path.lstrip(".") or "the config"


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
    where = _place(problem["loc"], model)
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: {_remedy(where, problem['input'])}"
        case "missing":
            return f"{where}: missing; add it"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}"
        case "union_tag_invalid":
            known, given = problem["ctx"]["expected_tags"].replace("'", ""), problem["input"]["policy"]
            return f"{where}.policy: {given!r} is not a policy; choose one of {known}, or speculation: off"
        case "model_type" | "union_tag_not_found":
            return f"{where}: a mapping of keys is needed, got {problem['input']!r}"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _place(keys: Sequence[Key], model: Section) -> _Place:
    """The place for pydantic's keys, without the policy names that pydantic adds for a union of sections."""
    place, sections = _Place(), [model]
    for key in keys:
        chosen = [section for section in sections if len(sections) > 1 and _policy(section) == key]
        if chosen:
            place.twins = [section for section in sections if section not in chosen]
            sections = chosen
            continue
        if key == "[key]":  # pydantic's marker for a wrong key of a mapping; the key before it names it
            continue
        place.keys.append(key)
        if isinstance(key, str):
            place.section = sections[0] if sections else None
            known = place.section.model_fields.get(key) if place.section else None
            sections = list(_sections(known.annotation)) if known else []
    return place


def _remedy(place: _Place, value: object) -> str:
    key = str(place.keys[-1])
    assert place.section is not None
    owners = [_policy(twin) for twin in place.twins if key in twin.model_fields]
    if owners:
        current = _policy(place.section)
        return f"belongs to policy {' or '.join(owners)}, this is {current}; set policy: {owners[0]}, or remove it"
    known = sorted(place.section.model_fields)
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
