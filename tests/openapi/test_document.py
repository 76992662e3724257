"""The OpenAPI document: its ranges are those of the code, and docs/api.md names what is in it and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from api.door import Door
from api.http import create_app
from api.keys import FixedKeys
from api.openapi import RANGES
from tests.api.api_client import CHAT, COMPLETION, TEXT, Client, error_of
from tests.api.api_twins import ScriptedBackend, says

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
BODIES = ("CompletionRequest", "ChatCompletionRequest", "ResponsesRequest", "TokenizeRequest", "DetokenizeRequest")
TAKEN = "taken, and without effect"
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": COMPLETION,
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"model": "tiny", "input": "a"},
    "/tokenize": {"prompt": "import"},
    "/detokenize": {"tokens": [5]},
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made: dict[str, Any] = create_app(ScriptedBackend(says(TEXT))).openapi()
    return made


def fields_of(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in schema.get("anyOf", [schema]):
        yield from kind["properties"].items()


def heeded(field: dict[str, Any]) -> bool:
    """Whether a field does something."""
    return "effect" not in field.get("description", "") and "not supported" not in field.get("description", "")


def test_the_page_names_every_path_and_no_other(document: dict[str, Any]) -> None:
    debug = {path for path in document["paths"] if path.startswith("/debug/")}
    named = set(re.findall(r"`(?:GET |POST )?(/[a-z][\w/{}]*)", PAGE))
    assert set(document["paths"]) - debug <= named | {"/v1/models/{model}"}
    assert named - {"/debug/", "/openapi"} <= set(document["paths"]) | debug


@pytest.mark.parametrize("body", BODIES)
def test_the_page_names_every_field_that_does_something(document: dict[str, Any], body: str) -> None:
    named = set(re.findall(r"`([a-z_]+)(?:[:=`])", PAGE))
    asked = {name for name, field in fields_of(document["components"]["schemas"][body]) if heeded(field)}
    assert asked - named == set()


def test_every_field_in_the_pages_table_is_one_of_a_body(document: dict[str, Any]) -> None:
    (table,) = re.findall(r"## Fields\n.*?\n\n(\|.*?)\n\n", PAGE, re.DOTALL)
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])}
    known = {name for body in BODIES for name, _ in fields_of(document["components"]["schemas"][body])}
    assert named
    assert named <= known


def test_no_answer_is_documented_that_fastapi_alone_would_give(document: dict[str, Any]) -> None:
    assert "422" not in {
        code for path in document["paths"].values() for one in path.values() for code in one["responses"]
    }
    assert not [name for name in document["components"]["schemas"] if "Validation" in name]


@pytest.mark.parametrize("name", sorted(set(RANGES) - {"tokens"}))
async def test_the_ranges_of_the_document_are_those_of_the_code(document: dict[str, Any], name: str) -> None:
    """A value at the edge is taken, the one behind it is refused by the field's name."""
    path = "/v1/responses" if name == "max_output_tokens" else "/v1/completions"
    path = "/v1/chat/completions" if name == "top_logprobs" else path
    beside = {"logprobs": True} if name == "top_logprobs" else {"max_tokens": 4} if name == "min_tokens" else {}
    async with Client(ScriptedBackend(says(TEXT))) as client:
        for value, is_good in edges(name):
            response = await client.post(path, json=ASKED[path] | beside | {name: value})
            if is_good:
                assert response.status_code == 200, (value, response.text)
            else:
                assert error_of(response, 400)["param"] in (name, {"max_completion_tokens": "max_tokens"}.get(name)), (
                    value
                )


def edges(name: str) -> Iterator[tuple[Any, bool]]:
    """Values, and whether they are in range. Upper ends of counts depend on the model."""
    for kind, limits in RANGES[name].items():
        step = 1 if kind == "integer" else 0.001
        for low in ("minimum", "exclusiveMinimum"):
            if low in limits:
                yield limits[low], low == "minimum"
                yield limits[low] - step, False
        if "maximum" in limits:
            yield limits["maximum"], True
            yield limits["maximum"] + step, False
        if name == "stop":
            yield "" if kind == "string" else ["x"] * 17, False
        if kind == "object":
            yield {"5": 100}, True
            yield {"5": 100.5}, False
            yield {"05": 1}, False


@pytest.mark.parametrize("path", ASKED)
async def test_answers_are_as_documented(document: dict[str, Any], path: str) -> None:
    answers = document["paths"][path]["post"]["responses"]
    known = {"components": document["components"]}
    async with Client(ScriptedBackend(says(TEXT))) as client:
        for changes, status in (({}, "200"), ({"model": "huge"}, "404"), ({"colour": 1}, "400")):
            response = await client.post(path, json=ASKED[path] | changes)
            assert str(response.status_code) == status
            jsonschema.validate(response.json(), answers[status]["content"]["application/json"]["schema"] | known)


def test_a_server_with_keys_says_so() -> None:
    keys = FixedKeys(["k" * 16], "DRAFTPOOL_API_KEYS")
    made = create_app(ScriptedBackend(says(TEXT)), door=Door(keys)).openapi()
    assert made["security"] == [{"key": []}]
    assert made["paths"]["/health"]["get"]["security"] == []
    assert "401" in made["paths"]["/v1/models"]["get"]["responses"]


def test_the_document_names_the_models_of_this_server(document: dict[str, Any]) -> None:
    assert document["components"]["schemas"]["CompletionRequest"]["properties"]["model"]["enum"] == ["tiny"]
