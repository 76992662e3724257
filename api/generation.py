"""Runs a completion for HTTP and gRPC alike: check the options, run the request, detokenize, apply stop strings.

Both front ends use this module, so the same request gives the same tokens over either.
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
class GenerationOptions:
    """Everything that a caller may set beside model and prompt.

    max_tokens: tokens; None: `default_max_tokens`, limited to the room left in the context. default_max_tokens: tokens;
    None: all the room that is left.
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
class GenerationJob:
    """One completion that was checked and can run."""

    card: ModelCard
    request: GenerateRequest
    stop: tuple[str, ...]

    @property
    def usage(self) -> Usage:
        """Usage before the first token."""
        return Usage(len(self.request.prompt_ids), 0)


@dataclass(frozen=True, slots=True)
class Delta:
    """The tokens and text that one round added.

    index: of the first token. usage: totals so far. stats: set on the last delta, unless a stop string ended the text.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    usage: Usage
    finish_reason: FinishReason | None = None
    stats: SequenceStats | None = None


class BackendFault(Exception):
    """The backend broke its contract, or lost the request."""


def check_model(backend: Backend, model: str) -> None:
    """Raises UnknownModel if the backend has no such model."""
    if model not in backend.names:
        raise UnknownModel(f"model {model[:100]!r} does not exist; this server has {', '.join(backend.names)}")


async def find_model(backend: Backend, model: str) -> ModelCard:
    """The card of a model; other targets are not asked. Raises UnknownModel or NotReady."""
    check_model(backend, model)
    card = await backend.card(model)
    if card is None:
        raise NotReady(f"model {model} is still loading; try again later")
    return card


async def loaded_models(backend: Backend) -> list[ModelCard]:
    """The cards of all models that have loaded. Raises NotReady if there are none."""
    cards = [card for card in await asyncio.gather(*map(backend.card, backend.names)) if card is not None]
    if not cards:
        raise NotReady("the models are still loading; try again later")
    return cards


def prepare(
    card: ModelCard, request_id: str, prompt_ids: tuple[int, ...], options: GenerationOptions, param: str = "prompt"
) -> GenerationJob:
    """Checks a request and returns its job.

    param: the caller's name for the prompt, for error messages. Without a seed, one is drawn; read it in
    `job.request.sampling.seed`. Raises InvalidRequest or PromptTooLong.
    """
    _check_prompt(card, prompt_ids, param)
    _check_stop(options.stop)
    check_speculation(card, options.speculation)
    seed = draw_seed() if options.seed is None else unsigned_seed(options.seed)
    sampling = SamplingParams(options.temperature, options.top_k, options.top_p, options.min_p, seed)
    eos = () if options.ignore_eos else card.eos_token_ids
    special = tuple(card.control.special[stop] for stop in options.stop if stop in card.control.special)
    stop_ids = frozenset(options.stop_token_ids + special + eos)  # a special token has no text, so match its id
    rules = StopRules(_max_tokens(card, len(prompt_ids), options), stop_ids)
    return GenerationJob(
        card, GenerateRequest(request_id, prompt_ids, sampling, rules, options.speculation), options.stop
    )


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


def _max_tokens(card: ModelCard, num_prompt: int, options: GenerationOptions) -> int:
    room, max_tokens = card.max_model_len - num_prompt, options.max_tokens
    if max_tokens is None:
        return min(room, options.default_max_tokens or room)
    if max_tokens > room:
        raise PromptTooLong(
            f"max_tokens {max_tokens} and a prompt of {num_prompt} tokens exceed the {card.max_model_len} tokens of "
            f"{card.id}; ask for {room} at most",
            "max_tokens",
        )
    return max_tokens


def _check_stop(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"{len(stops)} stop strings are too many; send {MAX_STOPS} at most", "stop")
    if "" in stops:
        raise InvalidRequest("an empty stop string would stop everything; leave it out", "stop")
    for stop in stops:
        check_text(stop, "stop")


async def run(backend: Backend, job: GenerationJob) -> AsyncGenerator[Delta, None]:
    """Yields one delta per round; the last has a finish reason.

    Closing the generator cancels the request, and so does a stop string.
    """
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


async def complete(backend: Backend, job: GenerationJob) -> list[Delta]:
    """The deltas of `run`, or a single delta if there are no stop strings to match while tokens arrive."""
    if job.stop:
        async with aclosing(run(backend, job)) as deltas:
            return [delta async for delta in deltas]
    token_run = await backend.complete(job.card.id, job.request)
    _check_finish(token_run)
    text = continuation(job.card.tokenizer, job.request.prompt_ids, token_run.token_ids)
    usage = Usage(len(job.request.prompt_ids), len(token_run.token_ids))
    return [Delta(0, token_run.token_ids, text, usage, token_run.finish_reason, token_run.stats)]


def _check_finish(token_run: TokenRun) -> None:
    if token_run.finish_reason is FinishReason.ABORT:
        raise NotReady("the model was stopped while it answered; send the request again")
    if token_run.finish_reason is FinishReason.ERROR:
        raise BackendFault("the engine failed")
    if token_run.finish_reason is FinishReason.UNDEFINED:
        raise ModelFault(
            "the model gives no next token: its logits are not numbers; serve it in float32, or check its weights"
        )
