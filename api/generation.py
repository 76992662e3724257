"""From a caller's wishes to text, the same for HTTP and gRPC: check, tokenize, run, detokenize, stop.

All that could make two front ends answer differently lives here, so that the same request gives the same tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from api.backend import Backend, ModelCard
from api.prompts import check_text
from api.seeds import draw_seed, unsigned_seed
from api.speculation import check_speculation
from api.text import TextStream, continuation
from protocol.errors import InvalidRequest, ModelFault, NotReady, PromptTooLong, UnknownModel
from protocol.plan import Speculation
from protocol.request import (
    FinishReason,
    GenerateRequest,
    SamplingParams,
    SequenceStats,
    StopRules,
    TokenRun,
)

MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class Wishes:
    """What may be asked beyond model and prompt.

    max_tokens None: `default_max_tokens`, or what the context still holds if that is less or there is no default.
    """

    max_tokens: int | None = None
    default_max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    speculation: Speculation | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Job:
    """One completion, checked and ready to run."""

    card: ModelCard
    request: GenerateRequest
    stop: tuple[str, ...]

    @property
    def usage(self) -> Usage:
        """Before the first token."""
        return Usage(len(self.request.prompt_ids), 0)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one round added. usage counts up to here; stats come with the finish, unless a stop string cut it."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    usage: Usage
    finish_reason: FinishReason | None = None
    stats: SequenceStats | None = None


class BackendFault(Exception):
    """The backend broke its promise, or lost the request on its way."""


def check_model(backend: Backend, model: str) -> None:
    """Raises UnknownModel."""
    if model not in backend.names:
        raise UnknownModel(f"model {model[:100]!r} does not exist; this server has {', '.join(backend.names)}")


async def find_model(backend: Backend, model: str) -> ModelCard:
    """Needs no other target than the one asked for. Raises UnknownModel or NotReady."""
    check_model(backend, model)
    card = await backend.card(model)
    if card is None:
        raise NotReady(f"model {model} is still loading; try again later")
    return card


async def known_models(backend: Backend) -> list[ModelCard]:
    """The targets that have told about themselves. Raises NotReady when none has."""
    cards = [card for card in await asyncio.gather(*map(backend.card, backend.names)) if card is not None]
    if not cards:
        raise NotReady("the models are still loading; try again later")
    return cards


def prepare(
    card: ModelCard, request_id: str, prompt_ids: tuple[int, ...], wishes: Wishes, param: str = "prompt"
) -> Job:
    """param: what the caller calls the prompt. Without a seed one is drawn; `job.request.sampling.seed` has it."""
    _check_prompt(card, prompt_ids, param)
    _check_stop(wishes.stop)
    check_speculation(card, wishes.speculation)
    seed = draw_seed() if wishes.seed is None else unsigned_seed(wishes.seed)
    sampling = SamplingParams(wishes.temperature, wishes.top_k, wishes.top_p, wishes.min_p, seed)
    eos = () if wishes.ignore_eos else card.eos_token_ids
    special = tuple(card.control.special[stop] for stop in wishes.stop if stop in card.control.special)
    stop_ids = frozenset(wishes.stop_token_ids + special + eos)  # a special token has no text to be found in
    rules = StopRules(_max_tokens(card, len(prompt_ids), wishes), stop_ids)
    return Job(card, GenerateRequest(request_id, prompt_ids, sampling, rules, wishes.speculation), wishes.stop)


def _check_prompt(card: ModelCard, prompt_ids: tuple[int, ...], param: str) -> None:
    if not prompt_ids:
        raise InvalidRequest(f"{param} is empty; send at least one token", param)
    if len(prompt_ids) >= card.max_model_len:
        raise PromptTooLong(
            f"{param} has {len(prompt_ids)} tokens and {card.id} holds {card.max_model_len}, at least one of them "
            "for the answer; shorten it",
            param,
        )
    outside = next((token for token in prompt_ids if not 0 <= token < card.vocab_size), None)
    if outside is not None:
        raise InvalidRequest(f"{param} holds token {outside}, outside the vocabulary of {card.vocab_size}", param)


def _max_tokens(card: ModelCard, num_prompt: int, wishes: Wishes) -> int:
    room, asked = card.max_model_len - num_prompt, wishes.max_tokens
    if asked is None:
        return min(room, wishes.default_max_tokens or room)
    if asked > room:
        raise PromptTooLong(
            f"max_tokens {asked} and a prompt of {num_prompt} tokens exceed the {card.max_model_len} tokens of "
            f"{card.id}; ask for {room} at most",
            "max_tokens",
        )
    return asked


def _check_stop(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"{len(stops)} stop strings are too many; send {MAX_STOPS} at most", "stop")
    if "" in stops:
        raise InvalidRequest("an empty stop string would stop everything; leave it out", "stop")
    for stop in stops:
        check_text(stop, "stop")


async def run(backend: Backend, job: Job) -> AsyncGenerator[Delta, None]:
    """One delta per round, the last with a finish reason. Closing it, or a stop string, cancels the request."""
    text = TextStream(job.card.tokenizer, job.stop, job.request.prompt_ids)
    num_prompt, count = len(job.request.prompt_ids), 0
    async with aclosing(backend.generate(job.card.id, job.request)) as runs:
        async for token_run in runs:
            _check_finish(token_run)
            piece = text.push(token_run.token_ids, last=token_run.finish_reason is not None)
            index, count = count, count + piece.num_tokens
            yield Delta(
                index,
                token_run.token_ids[: piece.num_tokens],
                piece.text,
                Usage(num_prompt, count),
                FinishReason.STOP if piece.stopped else token_run.finish_reason,
                token_run.stats,
            )
            if piece.stopped or token_run.finish_reason is not None:
                return
    raise BackendFault("the stream ended without a finish reason")


async def complete(backend: Backend, job: Job) -> list[Delta]:
    """The deltas of `run`, or all of them in one: only a stop string needs to be looked for while tokens come."""
    if job.stop:
        async with aclosing(run(backend, job)) as deltas:
            return [delta async for delta in deltas]
    whole = await backend.complete(job.card.id, job.request)
    _check_finish(whole)
    text = continuation(job.card.tokenizer, job.request.prompt_ids, whole.token_ids)
    usage = Usage(len(job.request.prompt_ids), len(whole.token_ids))
    return [Delta(0, whole.token_ids, text, usage, whole.finish_reason, whole.stats)]


def _check_finish(token_run: TokenRun) -> None:
    if token_run.finish_reason is FinishReason.ABORT:
        raise NotReady("the model was stopped while it answered; send the request again")
    if token_run.finish_reason is FinishReason.ERROR:
        raise BackendFault("the engine failed")
    if token_run.finish_reason is FinishReason.UNDEFINED:
        raise ModelFault(
            "the model gives no next token, for its scores are not numbers; serve it in float32, or check its weights"
        )
