"""The gRPC service of protocol/inference.proto over any Backend. A message means what the same HTTP body means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

from grpc import StatusCode

from api.backend import Backend
from api.chats import read_chat
from api.door import HEADER, Door
from api.errors import to_problem
from api.generation import stream
from api.jobs import prepare
from api.meter import Meter
from api.metered import streamed
from api.models import find_model, loaded_models
from api.openai import ChatCompletionRequest
from api.prompts import prompt_ids
from api.refused import CallRefused
from api.rpc_answers import Answer
from api.rpc_bodies import CallBody, chat_body, generate_body
from api.seeds import choice_seed, draw_seed
from api.spans import NO_SPANS, Asked, Spans
from api.streams import merge
from protocol.errors import Unauthenticated
from protocol.pb import inference_pb2 as pb


class Context(Protocol):
    """The part of a servicer context that this module uses. Those of grpc.aio and Ray Serve both have it."""

    def set_code(self, code: StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str]]: ...


def admit(door: Door, context: Context) -> None:
    """Raises CallRefused, with UNAUTHENTICATED, for a caller without a key. Every RPC of ours begins with it."""
    try:
        door.admit_caller(dict(context.invocation_metadata()).get(HEADER))
    except Unauthenticated as error:
        raise refuse(error, f"call-{uuid4().hex}", context) from None


def refuse(error: Exception, request_id: str, context: Context) -> CallRefused:
    """The exception that ends the call, with the status of `error` set on the context.

    When to come again is in the message: Serve's proxies send neither metadata nor details behind an exception.
    """
    problem = to_problem(error, request_id)
    context.set_code(problem.row.grpc)
    context.set_details(problem.message)
    return CallRefused(problem.message, problem.row.grpc)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is to be answered, and what watches it."""

    method: str
    asked: Asked
    context: Context
    meter: Meter
    spans: Spans


async def generate(
    backend: Backend,
    message: pb.GenerateRequest,
    context: Context,
    meter: Meter | None = None,
    spans: Spans = NO_SPANS,
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """meter: counts the call; None: it is counted nowhere."""
    call = _Call("Generate", Asked("text_completion", message.model, True), context, meter or Meter(), spans)

    async def prepared(call_id: str) -> list[Answer]:
        body = generate_body(message)
        card = await find_model(backend, body.model)
        with card.places.entered():
            (prompt,) = await prompt_ids(card, body)
            grammar = await asyncio.to_thread(body.grammar) if body.is_shaped else ""
        (echo,) = body.echoes()
        jobs = [
            prepare(card, f"{call_id}-{index}", prompt, body, seed, echo=echo, grammar=grammar)
            for index, seed in enumerate(_seeds(body))
        ]
        return [Answer(call_id, index, job) for index, job in enumerate(jobs)]

    async with aclosing(_answers(call, backend, prepared)) as responses:
        async for response in responses:
            yield response


async def chat(
    backend: Backend, message: pb.ChatRequest, context: Context, meter: Meter | None = None, spans: Spans = NO_SPANS
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """meter: as for `generate`."""
    call = _Call("Chat", Asked("chat", message.options.model, True), context, meter or Meter(), spans)

    async def prepared(call_id: str) -> list[Answer]:
        body = chat_body(message)
        card = await find_model(backend, body.model)
        with card.places.entered():
            asked = await read_chat(card, body)
        jobs = [asked.job(card, f"{call_id}-{index}", seed) for index, seed in enumerate(_seeds(body))]
        return [Answer(call_id, index, job, asked.calling) for index, job in enumerate(jobs)]

    async with aclosing(_answers(call, backend, prepared)) as responses:
        async for response in responses:
            yield response


async def _answers(
    call: _Call, backend: Backend, prepared: Callable[[str], Awaitable[list[Answer]]]
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """The responses to one call. prepared: its choices, by the id of the call."""
    request_id, arrived = f"gen-{uuid4().hex}", call.meter.clock()
    span = call.spans.begin(call.asked, dict(call.context.invocation_metadata()))
    with _answering(call.method, request_id, call.context, call.meter):
        try:
            answers = await prepared(request_id)
        except BaseException as error:
            span.fail(error)
            raise
        jobs = [replace(answer.job, request=span.carried(answer.job.request)) for answer in answers]
        runs = [streamed(call.meter, job, stream(backend, job), arrived) for job in jobs]
        deltas = merge(runs, jobs[0].card.max_batch)
        async with aclosing(span.follow(deltas, request_id, [job.request for job in jobs])) as followed:
            async for index, delta in followed:
                yield answers[index].response(delta)


def _seeds(body: CallBody | ChatCompletionRequest) -> list[int]:
    """Of the choices."""
    seed = draw_seed() if body.seed is None else body.seed
    return [choice_seed(seed, index) for index in range(body.n)]


async def list_models(
    backend: Backend, message: pb.ListModelsRequest, context: Context, meter: Meter | None = None
) -> pb.ListModelsResponse:
    """meter: as for `generate`."""
    with _answering("ListModels", f"list-{uuid4().hex}", context, meter or Meter()):
        cards = await loaded_models(backend)
        return pb.ListModelsResponse(models=[pb.Model(id=card.id, max_model_len=card.max_model_len) for card in cards])


@contextmanager
def _answering(method: str, request_id: str, context: Context, meter: Meter) -> Iterator[None]:
    """Counts the call by its status. Ends it with the status of the error, if there is one."""
    code = StatusCode.CANCELLED
    try:
        yield
        code = StatusCode.OK
    except Exception as error:
        refused = refuse(error, request_id, context)
        code = refused.code
        raise refused from None
    finally:
        meter.calls.labels(method, code.name).inc()
