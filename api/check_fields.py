"""Handles the request fields of OpenAI and vLLM that are not supported.

Fields that cannot change the answer are dropped. Fields that can are refused by name unless they have their default:
ignoring one silently would return a text that the caller did not ask for.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic_core import ErrorDetails

from protocol.errors import InvalidRequest

DROPPED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "priority",
        "request_id",
        "cache_control",
        "cache_salt",
    }
)
DROPPED_IN_MESSAGE = frozenset({"cache_control", "provider_specific_fields"})  # and in its parts
UNIONS = frozenset({"prompt", "stop"})  # pydantic reports one error per member of a union, under its own names

ONLY = MappingProxyType[str, tuple[Any, ...]](
    {
        "n": (1, None),
        "best_of": (1, None),
        "use_beam_search": (False, None),
        "frequency_penalty": (0, None),
        "presence_penalty": (0, None),
        "repetition_penalty": (1, None),
        "length_penalty": (1, None),
        "logit_bias": ({}, None),
        "logprobs": (False, None),
        "top_logprobs": (0, None),
        "prompt_logprobs": (None,),
        "echo": (False, None),
        "suffix": ("", None),
        "min_tokens": (0, None),
        "response_format": ({"type": "text"}, None),
        "skip_special_tokens": (True, None),
        "spaces_between_special_tokens": (True, None),
        "include_stop_str_in_output": (False, None),
        "tools": ([], None),
        "tool_choice": ("none", "auto", None),
        "parallel_tool_calls": (False, True, None),
        "functions": ([], None),
        "function_call": ("none", "auto", None),
        "modalities": (["text"], None),
        "audio": (None,),
        "prediction": (None,),
        "reasoning_effort": (None,),
        "verbosity": (None,),
        "web_search_options": (None,),
        "add_generation_prompt": (True, None),
        "continue_final_message": (False, None),
        "chat_template": (None,),
        "chat_template_kwargs": ({}, None),
        "documents": ([], None),
    }
)

ONLY_IN_MESSAGE = MappingProxyType[str, tuple[Any, ...]](
    {
        "refusal": (None,),
        "annotations": ([], None),
        "audio": (None,),
        "function_call": (None,),
        "tool_calls": ([], None),
        "reasoning": (None,),
        "reasoning_content": (None,),
    }
)


def check_fields(fields: Any, only: Mapping[str, tuple[Any, ...]], dropped: frozenset[str] = frozenset()) -> Any:
    """The fields without dropped ones and defaults. only: allowed values by field. Raises InvalidRequest for others."""
    if not isinstance(fields, dict):
        return fields
    for name in fields.keys() & only.keys():
        if not _allowed(fields[name], only[name]):
            default = json.dumps(only[name][0])
            raise InvalidRequest(
                f"{name} {reprlib.repr(fields[name])} is not supported; leave it out or send {default}", name
            )
    return {name: value for name, value in fields.items() if name not in only and name not in dropped}


def with_whole_numbers(value: Any, depth: int = 3) -> Any:
    """The value with whole floats as integers, since JSON has one type of number. depth: levels to descend."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if depth and isinstance(value, dict):
        return {name: with_whole_numbers(item, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, list):
        return [with_whole_numbers(item, depth - 1) if type(item) in (float, list, dict) else item for item in value]
    return value


def _allowed(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether the value is allowed. As in JSON, true is not equal to 1."""
    return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in allowed)


def invalid_request(errors: Sequence[ErrorDetails]) -> InvalidRequest:
    """An error that explains the first of pydantic's errors and names its place, without the caller's text."""
    first = errors[0]
    place = first["loc"][1:]  # inside the body, or the query
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequest):
        return InvalidRequest(f"{_path(place)}: {cause}", str(place[0])) if len(place) > 1 else cause
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {cause} at character {place[0] if place else 0}")
    if not place:
        return InvalidRequest("the body must be a JSON object, with content-type application/json")
    name = str(place[0])
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown parameter {_path(place)[:100]!r}; leave it out", name[:100])
    if first["type"] == "missing":
        return InvalidRequest(f"{_path(place)} is missing", name)
    if name in UNIONS:
        return InvalidRequest(f"{name}: {_complaints(errors, name)}", name)
    return InvalidRequest(f"{_path(place)}: {_complaint(first)}", name)


def _path(place: Sequence[int | str]) -> str:
    """The path as code, such as messages[0].content[1].text."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def _complaint(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _complaints(errors: Sequence[ErrorDetails], name: str) -> str:
    """The errors of all members of a union, joined by "or"."""
    about = [error for error in errors if name in error["loc"][:2]]
    return " or ".join(dict.fromkeys(map(_complaint, about[:8])))
