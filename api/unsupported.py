"""Request fields of OpenAI and vLLM that are not supported.

Fields that cannot change the answer are dropped. Fields that can are refused by name unless they have their default:
ignoring one silently would return a text that the caller did not ask for.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from protocol.errors import InvalidRequest

Allowed = Mapping[str, tuple[Any, ...]]  # values by field; null is always allowed


def _allowed(*groups: tuple[Any, ...], beside: Allowed | None = None) -> Allowed:
    """groups: field names separated by spaces, then their allowed values."""
    own = {name: tuple(values) for names, *values in groups for name in names.split()}
    return MappingProxyType({**(beside or {}), **own})


DROPPED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    | {"prompt_cache_options", "request_id", "session_id", "cache_control", "cache_salt"}
)
DROPPED_IN_MESSAGE = frozenset({"cache_control", "provider_specific_fields"})  # and in its parts
DROPPED_IN_FUNCTION = frozenset({"cache_control"})
DROPPED_IN_STREAM_OPTIONS = frozenset({"include_obfuscation"})

ONLY = _allowed(
    ("best_of length_penalty", 1),
    ("use_beam_search", False),
    ("spaces_between_special_tokens include_reasoning", True),
    ("return_tokens_as_token_ids", False),
    ("function_call", "none", "auto"),
    ("functions documents bad_words", []),
    ("suffix", ""),
    ("modalities", ["text"]),
    ("prompt_logprobs allowed_token_ids truncate_prompt_tokens prompt_embeds chat_template", None),
    ("audio moderation prediction reasoning_effort verbosity web_search_options", None),
)
ONLY_IN_COMPLETIONS = _allowed(
    ("continue_final_message", False),
    ("add_generation_prompt", True),
    ("chat_template_kwargs", {}),
    ("tools", []),
    ("tool_choice", "none", "auto"),
    ("parallel_tool_calls", False, True),
    ("top_logprobs", 0),
    beside=ONLY,
)
ONLY_IN_RESPONSES = _allowed(
    ("store background return_token_ids return_token_sources logprobs", False),
    ("n", 1),
    ("top_logprobs", 0),
    ("include", []),
    ("truncation", "disabled"),
    ("response_format structured_outputs", None),
    ("reasoning", {}),
    ("previous_response_id conversation prompt image max_tool_calls context_management access_programs", None),
    ("max_tokens max_completion_tokens", None),
    beside=ONLY,
)
ONLY_IN_TEXT = _allowed(("verbosity", None))
ONLY_IN_TEXT_PART = _allowed(("annotations", []))
ONLY_IN_CHAT = _allowed(("echo", False), beside=ONLY)
ONLY_IN_MESSAGE = _allowed(
    ("annotations", []),
    ("refusal audio function_call reasoning reasoning_content", None),
)


def supported(fields: Mapping[str, Any], only: Allowed, dropped: frozenset[str]) -> dict[str, Any]:
    """The fields that a body has to handle itself: those that are set and supported. Raises InvalidRequest."""
    given = {name: value for name, value in fields.items() if value is not None and name not in dropped}
    for name in given.keys() & only.keys():
        if not any(_is_equal(given[name], value) for value in only[name]):
            value, default = reprlib.repr(given[name]), json.dumps(only[name][0])
            raise InvalidRequest(f"{name} {value} is not supported; leave it out or send {default}", name)
    return {name: value for name, value in given.items() if name not in only}


def _is_equal(value: Any, other: Any) -> bool:
    """Equality as in JSON, where true is not 1."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
