"""OpenAI's HTTP API over any Backend, as a FastAPI application."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.api.backend import Backend, ModelCard
from deployments.api.chat import chat_prompt
from deployments.api.debug import add_debug_routes
from deployments.api.errors import RETRY_AFTER_S, printable, problem
from deployments.api.generation import Delta, Job, Usage, complete, find_model, known_models, prepare, run
from deployments.api.limits import MAX_BODY_BYTES
from deployments.api.middleware import Around, request_id
from deployments.api.openai import COMPLETION_MAX_TOKENS, ChatCompletionRequest, CompletionRequest, StreamOptions
from deployments.api.prompts import encode
from deployments.api.replies import ChatShape, Choice, Json, Reply, Shape, TextShape, usage
from deployments.api.screen import refusal
from deployments.api.seeds import draw_seed
from deployments.api.streams import ClientGone, EventStream, Indexed, merged, together, unless_gone
from protocol.errors import DraftPoolError, InvalidRequest, NotReady

CLIENT_GONE_STATUS = 499  # nobody reads it; nginx's number, for access logs
DONE = "data: [DONE]\n\n"


def create_app(backend: Backend, *, max_body_bytes: int = MAX_BODY_BYTES, echo_request_id: bool = True) -> FastAPI:
    app = FastAPI(title="DraftPool", docs_url=None, redoc_url=None)
    app.add_middleware(Around, max_body_bytes=max_body_bytes, echo_id=echo_request_id)
    _add_error_handlers(app)
    _add_model_routes(app, backend)
    _add_generation_routes(app, backend)
    add_debug_routes(app, backend)
    return app


def _add_generation_routes(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        card = await find_model(backend, body.model)
        special = body.add_special_tokens is not False
        prompts = [
            await encode(card, prompt, add_special_tokens=special) if isinstance(prompt, str) else tuple(prompt)
            for prompt in body.prompts()
        ]
        return await _answer(_Call.of(backend, body, card, prompts, COMPLETION_MAX_TOKENS), request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        card = await find_model(backend, body.model)
        prompt_ids = await chat_prompt(card, body.messages)
        return await _answer(_Call.of(backend, body, card, [prompt_ids], None), request)


def _add_model_routes(app: FastAPI, backend: Backend) -> None:
    @app.get("/health")
    async def health() -> Response:
        if not await backend.ready():
            raise NotReady("the models are still loading; try again later")
        return Response()

    @app.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model(card) for card in await known_models(backend)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Json:
        return _model(await find_model(backend, model))


def _model(card: ModelCard) -> Json:
    fields = {"id": card.id, "object": "model", "created": card.created, "owned_by": "draftpool"}
    return fields | {"root": card.id, "parent": None, "max_model_len": card.max_model_len}


@dataclass(frozen=True, slots=True)
class _Call:
    """A checked request: what to run, and how to tell."""

    backend: Backend
    jobs: Sequence[Job]
    reply: Reply
    stream: bool
    options: StreamOptions

    @staticmethod
    def of(
        backend: Backend,
        body: CompletionRequest | ChatCompletionRequest,
        card: ModelCard,
        prompts: Sequence[tuple[int, ...]],
        default_max_tokens: int | None,
    ) -> _Call:
        shape: Shape = ChatShape() if isinstance(body, ChatCompletionRequest) else TextShape()
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options need stream: true", "stream_options")
        seed = draw_seed() if body.seed is None else body.seed
        wishes = body.wishes(default_max_tokens, seed)
        param = "messages" if isinstance(body, ChatCompletionRequest) else "prompt"
        reply_id = f"{shape.prefix}{uuid4().hex}"
        jobs = [prepare(card, f"{reply_id}-{i}", ids, wishes, param) for i, ids in enumerate(prompts)]
        length = wishes.speculation.length if wishes.speculation else None
        reply = Reply(shape, reply_id, int(time.time()), card.id, seed, bool(body.return_token_ids), length)
        return _Call(backend, jobs, reply, bool(body.stream), body.stream_options or StreamOptions())

    def deltas(self) -> AsyncGenerator[Indexed, None]:
        return merged([run(self.backend, job) for job in self.jobs])


async def _answer(call: _Call, request: Request) -> Response:
    if not call.stream:
        return JSONResponse(await unless_gone(request, _whole(call)))
    deltas = call.deltas()
    # The first delta is awaited before the status goes out, so that a full queue is still a 429.
    first = await unless_gone(request, anext(deltas))
    return EventStream(_events(call, first, deltas, request_id(request)), deltas)


async def _whole(call: _Call) -> Json:
    parts = await together([complete(call.backend, job) for job in call.jobs])
    return call.reply.whole([Choice.joined(deltas) for deltas in parts])


async def _events(
    call: _Call, first: Indexed, deltas: AsyncGenerator[Indexed, None], own_id: str
) -> AsyncGenerator[str, None]:
    last: dict[int, Delta] = {}
    for index in range(len(call.jobs)):
        if opening := call.reply.opening(index):
            yield _event(opening | _usage(call, call.jobs[index].usage))
    try:
        yield _chunk(call, *first)
        last[first[0]] = first[1]
        async for index, delta in deltas:
            yield _chunk(call, index, delta)
            last[index] = delta
        if call.options.include_usage:
            yield _event(call.reply.usage_chunk([last[index] for index in sorted(last)]))
    except Exception as error:
        yield _event(problem(error, own_id).body())
    yield DONE


def _chunk(call: _Call, index: int, delta: Delta) -> str:
    return _event(call.reply.chunk(index, delta) | _usage(call, delta.usage))


def _usage(call: _Call, so_far: Usage) -> Json:
    """null where the last chunk will tell it, as OpenAI has it."""
    if call.options.continuous_usage_stats:
        return {"usage": usage([so_far])}
    return {"usage": None} if call.options.include_usage else {}


def _event(fields: Json) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(DraftPoolError)
    async def known(request: Request, error: DraftPoolError) -> Response:
        found = problem(error, request_id(request))
        headers = {"retry-after": str(RETRY_AFTER_S)} if found.row.retry else None
        return JSONResponse(found.body(), found.row.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await known(request, refusal(error.errors()))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return _protocol_error(request, error)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)


def _protocol_error(request: Request, error: HTTPException) -> Response:
    """What the framework refuses: no such path or method (404), a body that is too large (413) or no body (400)."""
    missing = error.status_code in (404, 405)
    message: Any = error.detail
    if missing:
        allowed = (error.headers or {}).get("Allow")
        hint = f"; it takes {allowed}" if allowed else ""
        message = printable(f"{request.method} {request.url.path[:200]} does not exist{hint}")
    code = "request_too_large" if error.status_code == 413 else None
    fields = {"message": str(message), "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": fields}, 404 if missing else error.status_code, error.headers)
