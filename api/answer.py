"""Answers a request for completions over HTTP, whole or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from api.backend import Backend, ModelCard
from api.call_replies import CallingReply
from api.chats import read_chat
from api.errors import to_problem
from api.generation import Delta, GenerationJob, complete, find_model, prepare, stream
from api.meter import Meter
from api.metered import streamed, whole
from api.middleware import request_id
from api.openai import ChatCompletionRequest, CompletionRequest
from api.prompts import prompt_ids
from api.replies import ChatReply, Json, Reply
from api.response_replies import ResponseReply
from api.responses import ResponsesRequest
from api.seeds import choice_seed, draw_seed
from api.streams import EventStream, Indexed, collect, merge, run_while_connected
from api.time_limit import TimeLimit
from protocol.errors import InvalidRequest

DONE = "data: [DONE]\n\n"

Body = CompletionRequest | ChatCompletionRequest | ResponsesRequest


async def answer(backend: Backend, body: Body, request: Request, max_s: float | None, meter: Meter) -> Response:
    """The response. max_s: the operator's limit in seconds. Raises DraftPoolError before the response has begun."""
    arrived = meter.clock()
    limit = TimeLimit(request.headers, max_s)
    async with limit.enforced():
        card = await find_model(backend, body.model)
        reply, jobs = await _prepared(card, body)
        # At most one batch at once, so that a call with many prompts cannot fill a replica's queue.
        run, counted = (stream, streamed) if body.stream else (complete, whole)
        deltas = merge([counted(meter, job, run(backend, job), arrived) for job in jobs], card.max_batch)
        if not body.stream:
            return JSONResponse(reply.whole(await run_while_connected(request, collect(deltas, len(jobs)))))
        # The first delta is awaited before the status goes out, so that a full queue is still a 429.
        deltas = limit.apply(deltas)
        first = await run_while_connected(request, anext(deltas))
    if isinstance(reply, ResponseReply):
        return EventStream(reply.events(first[1], deltas, request_id(request)), deltas)
    return EventStream(_events(reply, len(jobs), first, deltas, request_id(request)), deltas)


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


async def _events(
    reply: Reply,
    num_choices: int,
    first: Indexed,
    deltas: AsyncGenerator[Indexed, None],
    request_id: str,
) -> AsyncGenerator[str, None]:
    for index in range(num_choices):
        if opening := reply.opening(index):
            yield _event(opening)
    last: dict[int, Delta] = dict([first])
    try:
        yield _event(reply.chunk(*first))
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
