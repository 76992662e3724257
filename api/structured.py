"""Structured output: response_format of OpenAI and structured_outputs of vLLM, as grammars that llguidance reads.

llguidance, because it makes a mask in a tenth of a millisecond without a grammar being prepared for a vocabulary first,
takes all of JSON Schema that it does not refuse by name, and imports nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from llguidance import LLMatcher
from pydantic import Field, model_validator

from api.shapes import Body, JsonObject
from protocol.errors import InvalidRequest

MAX_GRAMMAR = 64 << 10  # characters
MAX_CHOICES = 1024
SPACE = r"[ \n\t]{0,24}"  # between the parts of a JSON text: no model writes it for ever
WHITESPACE: Mapping[str, Any] = MappingProxyType({"whitespace_flexible": True, "whitespace_pattern": SPACE})
ANY_OBJECT = MappingProxyType({"type": "object"})


class JsonSchemaFormat(Body):
    """OpenAI's json_schema. strict changes nothing: a schema always holds."""

    name: str = ""
    description: str | None = None
    json_schema: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_if_named(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise InvalidRequest(
                "type json_schema and a json_schema go together; send both or neither", "response_format"
            )
        return self

    @property
    def wanted(self) -> JsonObject | None:
        """The JSON Schema of the answer; None: it has none."""
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return None if self.type == "text" else dict(ANY_OBJECT)

    def grammar(self, place: str) -> str:
        return "" if self.wanted is None else of_json(self.wanted, place)


class StructuredOutputs(Body):
    """One of vLLM's ways to say what an answer looks like. grammar: Lark, as llguidance reads it."""

    json_schema: JsonObject | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)] | None = None
    lark: str | None = Field(default=None, alias="grammar")

    @model_validator(mode="after")
    def _one_way(self) -> StructuredOutputs:
        if sum(bool(way) for way in (self.json_schema, self.json_object, self.regex, self.choice, self.lark)) != 1:
            raise InvalidRequest("send one of json, json_object, regex, choice and grammar", "structured_outputs")
        return self

    @property
    def wanted(self) -> JsonObject | None:
        """The JSON Schema of the answer; None: it has none."""
        if isinstance(self.json_schema, str):
            try:
                parsed = json.loads(self.json_schema)
            except (ValueError, RecursionError):
                return None
            return parsed if isinstance(parsed, dict) else None
        return self.json_schema or (dict(ANY_OBJECT) if self.json_object else None)

    def grammar(self, place: str) -> str:
        if self.regex:
            return str(LLMatcher.grammar_from_regex(self.regex))
        if self.choice:
            return str(LLMatcher.grammar_from_regex("|".join(map(re.escape, self.choice))))
        if self.lark:
            return str(LLMatcher.grammar_from_lark(self.lark))
        return of_json(self.json_schema or dict(ANY_OBJECT), place)


def of_json(schema: dict[str, Any] | str, place: str) -> str:
    """place: the caller's name for the schema. Raises InvalidRequest for a text that is no JSON object."""
    overrides: Any = dict(WHITESPACE)  # a TypedDict of llguidance's
    try:
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=overrides))
    except ValueError as error:
        raise InvalidRequest(f"the schema is no JSON object: {str(error)[:200]}", place) from None


def grammar_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None, field: str) -> str:
    """The grammar that both ask for; empty for none. field: the caller's name for the first.

    Raises InvalidRequest where there are two, or one is wrong.
    """
    shape = response_format.grammar(field) if response_format is not None else ""
    other = structured.grammar("structured_outputs") if structured is not None else ""
    if shape and other:
        raise InvalidRequest(f"{field} and structured_outputs both shape the answer; send one", "structured_outputs")
    return checked(shape or other, field if shape else "structured_outputs") if shape or other else ""


def checked(grammar: str, place: str) -> str:
    """The grammar. Raises InvalidRequest for one that is too long or that llguidance cannot hold a text to."""
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidRequest(f"a grammar of {len(grammar)} characters is too long; send {MAX_GRAMMAR} at most", place)
    complaint = LLMatcher.validate_grammar(grammar)
    if complaint and not complaint.startswith("WARNING"):
        raise InvalidRequest(f"what the answer shall look like cannot be used: {complaint[:300]}", place)
    return grammar
