"""Tools that are offered, texts that are drawn under a grammar, and the calls that are read in them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from api.call_grammars import FORMS, Offer
from api.calls import Arguments, BegunCall, CallParser, CallReader, MoreArguments, Text
from api.tools import Tool
from tests.api.api_twins import tiny_tokenizer
from tests.api.tool_cases import tool

TOKENIZER = tiny_tokenizer()
SEEN = LLTokenizer(TOKENIZER.backend_tokenizer.to_str(), eos_token=[TOKENIZER.eos_token_id])
CITY = {"type": "object", "$defs": {"city": {"enum": ["rome", "oslo"]}}, "properties": {"at": {"$ref": "#/$defs/city"}}}
CITY |= {"required": ["at"], "additionalProperties": False}
COUNT = {"properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
OFFERED = [
    Tool.model_validate(tool(name="weather", parameters=CITY)),
    Tool.model_validate(tool(name="wait", parameters=COUNT | {"additionalProperties": False})),
    Tool.model_validate(tool(name="time")),
]
SCHEMAS: dict[str, Any] = {"weather": CITY, "wait": {"type": "object"} | COUNT, "time": {"maxProperties": 0}}
PARSERS = pytest.mark.parametrize("parser", [*FORMS], ids=["hermes", "llama 3", "mistral"])


def offer(
    parser: type[CallParser],
    tools: Sequence[Tool] = OFFERED,
    marks: Mapping[str, int] = MappingProxyType({}),
    *,
    many: bool = False,
    free_tokens: Sequence[int] = (),
) -> Offer:
    return Offer(parser, dict(enumerate(tools)), marks, many, free_tokens)


def strict(tools: Sequence[Tool] = OFFERED) -> list[Tool]:
    return [each.model_copy(update={"function": each.function.model_copy(update={"strict": True})}) for each in tools]


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def written(grammar: str, rng: random.Random, begin: str = "") -> str | None:
    """A text that begins like this and is drawn under the grammar; None where it does not end in time."""
    matcher, ids = LLMatcher(SEEN, grammar), ids_of(begin)
    assert not matcher.is_error(), matcher.get_error()
    assert matcher.consume_tokens(ids), matcher.get_error()
    for _ in range(300):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        ids.append(rng.choice(np.flatnonzero(bits).tolist()))
        if ids[-1] == TOKENIZER.eos_token_id:
            return str(TOKENIZER.decode(ids[:-1]))
        assert matcher.consume_token(ids[-1])
    return None


def read(parser: type[CallParser], text: str) -> list[tuple[str, Any]]:
    """The calls in a text that says nothing else."""
    found: list[tuple[str, list[str]]] = []
    for said in CallReader(parser(frozenset(SCHEMAS)), None).push(text, last=True):
        assert not isinstance(said, Text | Arguments), said
        if isinstance(said, BegunCall):
            found.append((said.name, []))
        elif isinstance(said, MoreArguments):
            found[-1][1].append(said.text)
    return [(name, json.loads("".join(parts))) for name, parts in found]
