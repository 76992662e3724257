"""Runs a completion for HTTP and gRPC alike: check the request, run it, detokenize, apply stop strings.

Both front ends use this module, so the same request gives the same tokens over either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from api.backend import Backend, ModelCard
from api.generation_body import GenerationBody
from api.prompts import check_text
from api.scores import Score, Scores
from api.text import Shown, TextStream, TokenDecoder
from protocol.errors import InvalidRequest, ModelFault, NotReady, PromptTooLong, UnknownModel
from protocol.logit_rules import check_rules
from protocol.plan import Speculation
from protocol.request import FinishReason, GenerateRequest, SequenceStats, StopRules, TokenRun, check_prompt

MAX_STOPS = 16

Echo = str | tuple[int, ...]  # what a text begins with: text, or the text of token ids


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """One completion that was checked and can run.

    decoder: makes text of tokens. keeps_stop: whether the stop string that ends the text is part of it.
    """

    card: ModelCard
    request: GenerateRequest
    stops: tuple[str, ...]
    decoder: TokenDecoder
    keeps_stop: bool = False
    echo: Echo = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """The tokens and text that one round added.

    index: of the first token. stats: set on the last delta, unless a stop string ended the text. scores, sources: of
    the tokens, if the request asks for logprobs, for sources. num_cached: tokens of the prompt that the target did not
    have to read. of_prompt: scores of the prompt's tokens, on the only delta of a request that asks for them.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    stats: SequenceStats | None = None
    scores: tuple[Score, ...] = ()
    num_cached: int = 0
    sources: tuple[int, ...] = ()
    of_prompt: tuple[Score, ...] = ()

    @property
    def num_tokens(self) -> int:
        """The tokens so far, those of this delta included."""
        return self.index + len(self.token_ids)


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
        raise NotReady(f"model {model} is still loading")
    return card


async def loaded_models(backend: Backend) -> list[ModelCard]:
    """The cards of all models that have loaded. Raises NotReady if there are none."""
    cards = [card for card in await asyncio.gather(*map(backend.card, backend.names)) if card is not None]
    if not cards:
        raise NotReady("the models are still loading")
    return cards


def prepare(
    card: ModelCard,
    request_id: str,
    prompt_ids: tuple[int, ...],
    body: GenerationBody,
    seed: int,
    *,
    echo: Echo = "",
    marks: Sequence[str] = (),
    grammar: str = "",
) -> GenerationJob:
    """Checks a request and returns its job. marks: tokens that have text in any case. grammar: of the answer.

    Raises InvalidRequest or PromptTooLong.
    """
    _check_stops(body.stops)
    _check_drafting(card, body.drafting)
    eos = () if body.ignore_eos else card.eos_token_ids
    special = [card.control.special[stop] for stop in body.stops if stop in card.control.special]
    stop_ids = frozenset([*body.stop_token_ids, *special, *eos])  # a special token has no text, so match its id
    room = card.max_model_len - len(prompt_ids)
    default = max(1, min(room, body.default_max_tokens or room))
    rules = StopRules(default if body.limit is None else body.limit, stop_ids)
    logits = body.rules(stop_ids)
    check_rules(logits, card.vocab_size)
    asked = body.drafting, logits, body.num_logprobs
    tells = body.return_token_sources
    request = GenerateRequest(
        request_id,
        prompt_ids,
        body.sampling(seed),
        rules,
        *asked,
        grammar=grammar,
        priority=body.priority,
        tells_sources=tells,
        tells_prompt=bool(echo) and body.num_logprobs is not None,
    )
    try:
        check_prompt(request, card.max_model_len, card.vocab_size)
    except InvalidRequest as error:
        error.param = body.prompt_field
        raise
    if rules.max_tokens > room:
        raise PromptTooLong(
            f"max_tokens {rules.max_tokens} and a prompt of {len(prompt_ids)} tokens exceed the {card.max_model_len} "
            f"tokens of {card.id}; ask for {room} at most",
            "max_tokens",
        )
    decoder = _decoder(card, body, stop_ids, marks)
    return GenerationJob(card, request, body.stops, decoder, body.include_stop_str_in_output, echo)


def _decoder(card: ModelCard, body: GenerationBody, stop_ids: frozenset[int], marks: Sequence[str]) -> TokenDecoder:
    """Shows marks and the special tokens that the body asks for. One that ends the text is treated as a stop string."""
    special = card.control.special
    hidden = frozenset(special.values())
    if not body.skip_special_tokens:
        hidden = frozenset() if body.include_stop_str_in_output else hidden & stop_ids
    elif body.include_stop_str_in_output:
        hidden -= {special[stop] for stop in body.stops if stop in special}
    hidden -= {special[mark] for mark in marks if mark in special}
    return card.tokenizer if len(hidden) == len(special) else Shown(card.tokenizer, hidden)


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"{len(stops)} stop strings are too many; send {MAX_STOPS} at most", "stop")
    if "" in stops:
        raise InvalidRequest("an empty stop string would stop everything; leave it out", "stop")
    for stop in stops:
        check_text(stop, "stop")


def _check_drafting(card: ModelCard, drafting: Speculation | None) -> None:
    """Raises InvalidRequest for a length above the target's limit, or for an unknown depth if the exits are known.

    The length is limited because all rows of a round wait for the longest draft.
    """
    if drafting is None or not drafting.length:
        return
    if card.max_draft_length is not None and drafting.length > card.max_draft_length:
        limit = f"{card.max_draft_length}, the limit of {card.id}"
        raise InvalidRequest(f"speculation length {drafting.length} exceeds {limit}; send less", "speculation")
    if card.exits and drafting.depth not in card.exits:
        exits = ", ".join(map(str, card.exits))
        raise InvalidRequest(
            f"speculation depth {drafting.depth} is not an exit of the drafter of {card.id}; send one of {exits}",
            "speculation",
        )


async def stream(backend: Backend, job: GenerationJob) -> AsyncGenerator[Delta, None]:
    """Yields one delta per round; the last has a finish reason. What is told of its prompt comes whole.

    Closing the generator cancels the request, and so does a stop string.
    """
    if job.request.tells_prompt:
        yield await _whole(backend, job)
        return
    echo, text = _text_of(job)
    scores, count, cached = Scores(job.card.spellings), 0, None
    async with aclosing(backend.generate(job.card.id, job.request)) as runs:
        async for run in runs:
            _check_finish(run)
            piece = text.push(run.token_ids, last=run.finish_reason is not None)
            index, count = count, count + piece.num_tokens
            reason = FinishReason.STOP if piece.stopped else run.finish_reason
            shown = piece.text + piece.stop if job.keeps_stop else piece.text
            token_ids = run.token_ids[: piece.num_tokens]
            told = scores.read(token_ids, run.logprobs)
            cached = run.num_cached if cached is None else cached  # a replica that goes on adopts other pages
            sources = run.sources[: piece.num_tokens]
            yield Delta(index, token_ids, echo + shown, reason, run.stats, told, cached, sources)
            echo = ""
            if reason is not None:
                return
    raise BackendFault("the stream ended without a finish reason")


async def complete(backend: Backend, job: GenerationJob) -> AsyncGenerator[Delta, None]:
    """The deltas of `stream`; without stop strings to match while tokens arrive, a single one at lower cost."""
    if not job.stops:
        yield await _whole(backend, job)
        return
    async with aclosing(stream(backend, job)) as deltas:
        async for delta in deltas:
            yield delta


async def _whole(backend: Backend, job: GenerationJob) -> Delta:
    run = await backend.complete(job.card.id, job.request)
    _check_finish(run)
    echo, text = _text_of(job)
    piece = text.push(run.token_ids, last=True)
    shown = echo + piece.text + (piece.stop if job.keeps_stop else "")
    reason, stats = (FinishReason.STOP, None) if piece.stopped else (run.finish_reason, run.stats)
    token_ids, sources = run.token_ids[: piece.num_tokens], run.sources[: piece.num_tokens]
    scores = Scores(job.card.spellings)
    of_prompt = scores.of_prompt(job.request.prompt_ids, run.of_prompt) if job.request.tells_prompt else ()
    told = scores.read(token_ids, run.logprobs)
    return Delta(0, token_ids, shown, reason, stats, told, run.num_cached, sources, of_prompt)


def _text_of(job: GenerationJob) -> tuple[str, TextStream]:
    """What the text of a job begins with, and the text of its tokens."""
    num_sure = job.request.rules.min_tokens
    if isinstance(job.echo, str):
        return job.echo, TextStream(job.decoder, job.stops, job.request.prompt_ids, num_sure)
    text = TextStream(job.decoder, job.stops, (), num_sure)
    return text.echo(job.echo), text


def _check_finish(run: TokenRun) -> None:
    if run.finish_reason in (FinishReason.ABORT, FinishReason.CLOSED):
        raise NotReady("the model was stopped while it answered")
    if run.finish_reason is FinishReason.ERROR:
        raise BackendFault("the engine failed")
    if run.finish_reason is FinishReason.UNDEFINED:
        raise ModelFault(
            "the model gives no next token: its logits are not numbers; serve it in float32, or check its weights"
        )
