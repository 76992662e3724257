"""Every parameter of OpenAI's own package is known: heeded, dropped as harmless, or refused by what may be sent."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from api.openai import ChatCompletionRequest, CompletionRequest
from api.responses import ResponsesRequest
from api.shapes import Body
from tests.api.api_client import Client, error_of
from tests.api.api_twins import ScriptedBackend


def known(body: type[Body]) -> set[str]:
    return body.model_fields.keys() | body.only.keys() | body.dropped


@pytest.mark.parametrize(
    ("body", "params"),
    [
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (ChatCompletionRequest, chat_create_params.CompletionCreateParamsBase),
        (ResponsesRequest, response_create_params.ResponseCreateParamsBase),
    ],
)
def test_no_parameter_of_the_package_is_unknown(body: type[Body], params: Any) -> None:
    assert params.__annotations__.keys() - known(body) == set()
    assert len(params.__annotations__) > 15


@pytest.mark.parametrize("fields", [{"bad_words": ["x"]}, {"moderation": {}}, {"return_tokens_as_token_ids": True}])
async def test_what_would_change_the_answer_says_what_may_be_sent(client: Client, fields: dict[str, Any]) -> None:
    error = error_of(await client.chat(**fields), 400)
    assert error["param"] in fields
    assert "leave it out or send" in error["message"]


async def test_what_is_harmless_is_taken(client: Client, backend: ScriptedBackend) -> None:
    harmless = {"prompt_cache_options": {"mode": "implicit"}, "session_id": "s", "include_reasoning": True}
    harmless |= {"bad_words": [], "return_tokens_as_token_ids": False, "allowed_token_ids": None}
    for answer in (await client.complete(**harmless), await client.chat(**harmless)):
        assert answer.status_code == 200
    assert len(backend.requests) == 2
