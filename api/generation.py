"""Runs completions for HTTP and gRPC alike: tokens from a backend become text, up to a stop string.

Both front ends use this module, so the same request gives the same tokens over either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from api.backend import Backend
from api.jobs import GenerationJob
from api.scores import Score, Scores
from api.text import TextStream
from protocol.errors import ModelFault, NotReady
from protocol.request import FinishReason, SequenceStats, TokenRun

# Places whose logprobs are made at a time: with 20 each, some milliseconds of the event loop, and far from the 4 MiB
# that gRPC's clients read at once.
PIECE = 64


@dataclass(frozen=True, slots=True)
class Delta:
    """The tokens and text that one round added.

    index: of the first token. stats: set on the last delta, unless a stop string ended the text. scores, sources: of
    the tokens, if the request asks for logprobs, for sources. num_cached: tokens of the prompt that the target did not
    have to read. of_prompt: scores of the next tokens of the prompt, on deltas before the first token, of a request
    that asks for them.
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


async def stream(backend: Backend, job: GenerationJob) -> AsyncGenerator[Delta, None]:
    """Yields one delta per round; the last has a finish reason. Where the prompt is told, all comes at the end.

    Closing the generator cancels the request, and so does a stop string.
    """
    if job.request.tells_prompt:
        async with aclosing(_whole(backend, job)) as pieces:
            async for piece_of_all in pieces:
                yield piece_of_all
        return
    echo, text = await _text_of(job)
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
    """The deltas of `stream`; without stop strings to match while tokens arrive, those of the end at lower cost."""
    async with aclosing(stream(backend, job) if job.stops else _whole(backend, job)) as deltas:
        async for delta in deltas:
            yield delta


async def _whole(backend: Backend, job: GenerationJob) -> AsyncGenerator[Delta, None]:
    """An answer when it has ended: one delta, or many where logprobs are told. Others have their turn between them."""
    run = await backend.complete(job.card.id, job.request)
    _check_finish(run)
    echo, text = await _text_of(job)
    if job.request.logprobs is None:
        yield _ended(job, run, echo, text)
        return
    answer = await job.card.beside(partial(_ended, job, run, "", text))
    for delta in _pieces(job, run, answer):
        yield replace(delta, text=echo + delta.text)
        echo = ""
        await asyncio.sleep(0)


def _ended(job: GenerationJob, run: TokenRun, echo: str, text: TextStream) -> Delta:
    """An answer without its scores."""
    piece = text.push(run.token_ids, last=True)
    shown = echo + piece.text + (piece.stop if job.keeps_stop else "")
    reason, stats = (FinishReason.STOP, None) if piece.stopped else (run.finish_reason, run.stats)
    token_ids, sources = run.token_ids[: piece.num_tokens], run.sources[: piece.num_tokens]
    return Delta(0, token_ids, shown, reason, stats, num_cached=run.num_cached, sources=sources)


def _pieces(job: GenerationJob, run: TokenRun, answer: Delta) -> Iterator[Delta]:
    """An answer with its scores, a few places at a time, the prompt's first; its text comes with the last."""
    scores, cached, ids = Scores(job.card.spellings), run.num_cached, answer.token_ids
    prompt = job.request.prompt_ids if job.request.tells_prompt else ()
    of_prompt = (None, *run.of_prompt)
    for at in range(0, len(prompt), PIECE):
        own = scores.read(prompt[at : at + PIECE], of_prompt[at : at + PIECE])
        yield Delta(0, (), "", num_cached=cached, of_prompt=own)
    for at in range(0, max(len(ids), 1), PIECE):
        end = at + PIECE
        whole = answer if end >= len(ids) else Delta(0, (), "", num_cached=cached)
        own = scores.read(ids[at:end], run.logprobs[at:end])
        yield replace(whole, index=at, token_ids=ids[at:end], scores=own, sources=answer.sources[at:end])


async def _text_of(job: GenerationJob) -> tuple[str, TextStream]:
    """What the text of a job begins with, and the text of its tokens."""
    num_sure = job.request.rules.min_tokens
    if isinstance(job.echo, str):
        return job.echo, TextStream(job.decoder, job.stops, job.request.prompt_ids, num_sure)
    text = TextStream(job.decoder, job.stops, (), num_sure)
    return await job.card.beside(partial(text.echo, job.echo)), text


def _check_finish(run: TokenRun) -> None:
    if run.finish_reason in (FinishReason.ABORT, FinishReason.CLOSED):
        raise NotReady("the model was stopped while it answered")
    if run.finish_reason is FinishReason.ERROR:
        raise BackendFault("the engine failed")
    if run.finish_reason is FinishReason.UNDEFINED:
        raise ModelFault(
            "the model gives no next token: its logits are not numbers; serve it in float32, or check its weights"
        )
