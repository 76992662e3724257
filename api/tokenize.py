"""vLLM's /tokenize and /detokenize: how a target reads a text or messages, and the text of tokens.

Prompts become tokens as in the completion routes, so the count is the one that a completion is billed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI
from pydantic import Field, ValidationError, model_validator

from api import unsupported
from api.backend import Backend, ModelCard
from api.chat import calling, chat_prompt, rendering
from api.errors import invalid_request
from api.generation_body import TokenIds
from api.models import find_model
from api.openai import ChatCompletionRequest, Message
from api.prompts import encode
from api.shapes import Body, JsonObject
from api.tools import ToolChoice, Tools
from protocol.errors import InvalidRequest

Json = dict[str, Any]
OF_CHATS = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools", "tool_choice")


class TokenizeRequest(Body):
    """One of prompt and messages. model may be left out where there is only one.

    add_special_tokens: of a prompt, true by default; those of messages are the template's. The fields that OF_CHATS
    names mean what they mean in a chat.
    """

    only: ClassVar[unsupported.Allowed] = MappingProxyType({"chat_template": (None,)})

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_prompt(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("send one of prompt and messages", "prompt")
        if self.messages is not None and self.add_special_tokens:
            raise InvalidRequest("the chat template writes the special tokens of messages", "add_special_tokens")
        if self.messages is None and (alone := [name for name in OF_CHATS if name in self.model_fields_set]):
            raise InvalidRequest(f"{alone[0]} needs messages; leave it out", alone[0])
        return self

    def chat(self, model: str) -> ChatCompletionRequest:
        """The chat whose prompt is asked for. Raises InvalidRequest."""
        given = {name: getattr(self, name) for name in ("messages", *OF_CHATS) if name in self.model_fields_set}
        try:
            return ChatCompletionRequest.model_validate({"model": model, **given})
        except ValidationError as error:
            raise invalid_request(error.errors()) from None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: TokenIds


def add_token_routes(app: FastAPI, backend: Backend) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Json:
        card = await _card(backend, body.model)
        tokens = list(await _token_ids(card, body))
        strings = card.tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None
        return {
            "count": len(tokens),
            "max_model_len": card.max_model_len,
            "tokens": tokens,
            "token_strs": strings,
        }

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Json:
        card = await _card(backend, body.model)
        _check_tokens(card, body.tokens)
        return {"prompt": await card.beside(partial(_text, card, body.tokens))}


async def _card(backend: Backend, model: str | None) -> ModelCard:
    if model is None and len(backend.names) > 1:
        raise InvalidRequest(f"model is missing; this server has {', '.join(backend.names)}", "model")
    return await find_model(backend, backend.names[0] if model is None else model)


async def _token_ids(card: ModelCard, body: TokenizeRequest) -> tuple[int, ...]:
    if body.messages is not None:
        chat = body.chat(card.id)
        calling(card, chat)  # refuses tools that the template does not know
        return await chat_prompt(card, chat.messages, rendering(chat))
    assert body.prompt is not None
    return await encode(card, body.prompt, add_special_tokens=body.add_special_tokens is not False)


def _check_tokens(card: ModelCard, tokens: Sequence[int]) -> None:
    for index, token in enumerate(tokens):
        if not 0 <= token < card.vocab_size:
            raise InvalidRequest(f"tokens[{index}] is outside the vocabulary of {card.vocab_size}", "tokens")


def _text(card: ModelCard, tokens: Sequence[int]) -> str:
    """The text with its special tokens."""
    return str(card.tokenizer.decode(list(tokens), False, clean_up_tokenization_spaces=False))
