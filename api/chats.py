"""What a chat asks of a model: the prompt, how answers may call functions, and the grammar that shapes them.

Chats over HTTP and gRPC and responses all begin here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from api.backend import ModelCard
from api.call_grammars import Offer, grammar_beside, grammar_of_calls, grammar_of_choice
from api.calls import Calling
from api.chat import calling, chat_prompt, rendering
from api.jobs import GenerationJob, prepare
from api.openai import ChatCompletionRequest


@dataclass(frozen=True, slots=True)
class Chat:
    """calling: None where nothing in an answer is read as a call. grammar: of the answers; empty: none."""

    body: ChatCompletionRequest
    prompt: tuple[int, ...]
    calling: Calling | None
    grammar: str

    @property
    def marks(self) -> Sequence[str]:
        return self.calling.parser.marks if self.calling else ()

    def job(self, card: ModelCard, request_id: str, seed: int) -> GenerationJob:
        """Of one choice. Raises InvalidRequest or PromptTooLong."""
        return prepare(card, request_id, self.prompt, self.body, seed, marks=self.marks, grammar=self.grammar)


async def read_chat(card: ModelCard, body: ChatCompletionRequest) -> Chat:
    """Raises InvalidRequest or PromptTooLong."""
    prompt = await chat_prompt(card, body.messages, rendering(body))
    how = calling(card, body)
    grammar = await asyncio.to_thread(_grammar, card, body, how) if body.is_shaped else ""
    return Chat(body, prompt, how, grammar)


def _grammar(card: ModelCard, body: ChatCompletionRequest, how: Calling | None) -> str:
    """A large one takes seconds to check."""
    if how is None:
        return body.grammar()
    offer = _offer(card, body, how)
    if body.must_call:
        return grammar_of_calls(offer)
    if not (said := body.grammar()):
        return grammar_of_choice(offer)
    return said if body.wanted is None else grammar_beside(offer, body.wanted)


def _offer(card: ModelCard, body: ChatCompletionRequest, how: Calling) -> Offer:
    added = card.tokenizer.get_added_vocab()
    marks = {mark: added[mark] for mark in how.parser.marks if mark in added}
    free = set(added.values()).difference(card.eos_token_ids, [marks.get(how.parser.marks[0])])
    return Offer(how.parser, body.callable, marks, how.max_calls is None, sorted(free))
