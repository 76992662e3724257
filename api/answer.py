"""Answers a request for completions over HTTP, whole or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from api.backend import Backend, ModelCard
from api.call_replies import CallingReply
from api.chats import read_chat
from api.errors import to_problem
from api.generation import Delta, complete, stream
from api.jobs import GenerationJob, prepare
from api.json_pieces import encode
from api.meter import Meter
from api.metered import streamed, whole
from api.middleware import request_id
from api.models import find_model
from api.openai import ChatCompletionRequest, CompletionRequest
from api.prompts import prompt_ids
from api.replies import ChatReply, Json, Reply
from api.response_replies import ResponseReply
from api.responses import ResponsesRequest
from api.seeds import choice_seed, draw_seed
from api.spans import NO_SPANS, Asked, Span, Spans
from api.streams import NO_HEARTBEAT, Begun, EventStream, Heartbeat, Indexed, collect, merge, run_while_connected
from api.time_limit import TimeLimit
from protocol.errors import InvalidRequest

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"

Body = CompletionRequest | ChatCompletionRequest | ResponsesRequest


@dataclass(frozen=True, slots=True)
class Service:
    """What answers are made with. max_s: the operator's limit for one, in seconds."""

    backend: Backend
    meter: Meter
    max_s: float | None = None
    heartbeat: Heartbeat = NO_HEARTBEAT
    spans: Spans = NO_SPANS


async def answer(service: Service, body: Body, request: Request) -> Response:
    """The response. Raises DraftPoolError before it has begun."""
    operation = "text_completion" if isinstance(body, CompletionRequest) else "chat"
    span = service.spans.begin(Asked(operation, body.model, body.stream), request.headers)
    try:
        return await _answer(service, body, request, span)
    except BaseException as error:
        span.fail(error)
        raise


async def _answer(service: Service, body: Body, request: Request, span: Span) -> Response:
    backend, meter = service.backend, service.meter
    arrived = meter.clock()
    limit = TimeLimit(request.headers, service.max_s)
    async with limit.enforced():
        card = await find_model(backend, body.model)
        with card.places.entered():
            reply, jobs = await _prepared(card, body)
            logger.info("answering as %s with %d choices", reply.id, len(jobs))
            jobs = [replace(job, request=span.carried(job.request)) for job in jobs]
        # At most one batch at once, so that a call with many prompts cannot fill a replica's queue.
        run, counted = (stream, streamed) if body.stream else (complete, whole)
        deltas = merge([counted(meter, job, run(backend, job), arrived) for job in jobs], card.max_batch)
        deltas = span.follow(deltas, reply.id, [job.request for job in jobs])
        if not body.stream:
            choices = await run_while_connected(request, collect(deltas, len(jobs)))
            if jobs[0].request.logprobs is None:
                return JSONResponse(reply.whole(choices))
            body_bytes = await card.beside(lambda: encode(reply.whole(choices)))
            return Response(body_bytes, media_type=JSONResponse.media_type)
        # The first delta is awaited before the status goes out, so that a full queue is still a 429.
        begun = Begun(limit.apply(deltas))
        try:
            await run_while_connected(request, begun.begin(service.heartbeat))
        except BaseException:
            await begun.aclose()
            raise
    return EventStream(service.heartbeat.kept(_all_events(reply, len(jobs), begun, request_id(request))), begun)


async def _prepared(card: ModelCard, body: Body) -> tuple[Reply | ResponseReply, list[GenerationJob]]:
    """The reply, and a job for each choice."""
    seed = draw_seed() if body.seed is None else body.seed
    if isinstance(body, ResponsesRequest):
        return await _prepared_response(card, body, seed)
    if isinstance(body, ChatCompletionRequest):
        return await _prepared_chat(card, body, seed)
    prompts, echoes = await prompt_ids(card, body), body.echoes()
    grammar = await asyncio.to_thread(body.grammar) if body.is_shaped else ""
    seeds = [choice_seed(seed, index) for index in range(len(prompts) * body.n)]
    reply = Reply(body, seeds, [len(ids) for ids in prompts])
    jobs = []
    for index, seed in enumerate(seeds):  # as in OpenAI's API, the choices of a prompt stand together
        prompt, echo = prompts[index // body.n], echoes[index // body.n]
        jobs.append(prepare(card, f"{reply.id}-{index}", prompt, body, seed, echo=echo, grammar=grammar))
    return reply, jobs


async def _prepared_chat(
    card: ModelCard, body: ChatCompletionRequest, seed: int
) -> tuple[Reply | ResponseReply, list[GenerationJob]]:
    chat = await read_chat(card, body)
    seeds = [choice_seed(seed, index) for index in range(body.n)]
    sizes, how = [len(chat.prompt)], chat.calling
    reply = ChatReply(body, seeds, sizes) if how is None else CallingReply(body, seeds, sizes, how)
    return reply, [chat.job(card, f"{reply.id}-{index}", seed) for index, seed in enumerate(seeds)]


async def _prepared_response(
    card: ModelCard, body: ResponsesRequest, seed: int
) -> tuple[ResponseReply, list[GenerationJob]]:
    """The same for a response: the chat that it asks for, and errors that name its own fields."""
    try:
        chat = await read_chat(card, body.chat())
        reply = ResponseReply(body, seed, len(chat.prompt), chat.calling)
        return reply, [chat.job(card, reply.id, seed)]
    except InvalidRequest as error:
        error.param = "max_output_tokens" if error.param == "max_tokens" else error.param
        raise


def _all_events(
    reply: Reply | ResponseReply, num_choices: int, deltas: AsyncIterator[Indexed], request_id: str
) -> AsyncGenerator[str, None]:
    if isinstance(reply, ResponseReply):
        return reply.events(deltas, request_id)
    return _events(reply, num_choices, deltas, request_id)


async def _events(
    reply: Reply, num_choices: int, deltas: AsyncIterator[Indexed], request_id: str
) -> AsyncGenerator[str, None]:
    for index in range(num_choices):
        if opening := reply.opening(index):
            yield _event(opening)
    last: dict[int, Delta] = {}
    try:
        async for index, delta in deltas:
            yield _event(reply.chunk(index, delta))
            last[index] = delta
        if totals := reply.closing(last):
            yield _event(totals)
    except Exception as error:
        yield _event(to_problem(error, request_id).body())
    yield DONE


def _event(fields: Json) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"
