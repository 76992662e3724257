"""OpenAI's HTTP API over any Backend, as a FastAPI application."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from api.backend import Backend, ModelCard
from api.chat import chat_prompt
from api.check_fields import invalid_request
from api.debug import add_debug_routes
from api.errors import RETRY_AFTER_S, printable, to_problem
from api.generation import Delta, GenerationJob, Usage, check_model, complete, find_model, loaded_models, prepare, run
from api.limits import MAX_BODY_BYTES
from api.middleware import RequestIdMiddleware, request_id
from api.openai import COMPLETION_MAX_TOKENS, ChatCompletionRequest, CompletionRequest, StreamOptions
from api.prompts import encode
from api.replies import ChatShape, CompletedChoice, Json, Reply, Shape, TextShape, usage
from api.seeds import choice_seed, draw_seed
from api.streams import ClientGone, EventStream, Indexed, gather_or_cancel, merge, run_in_turn, run_while_connected
from api.time_limit import TimeLimit
from protocol.errors import DraftPoolError, InvalidRequest, NotReady

CLIENT_GONE_STATUS = 499  # nginx's number; the client has left, so only access logs show it
DONE = "data: [DONE]\n\n"


def create_app(
    backend: Backend,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    echo_request_id: bool = True,
    request_timeout_s: float | None = None,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The application.

    request_timeout_s: upper limit for a completion. cors_origins: sites whose pages may call the API.
    """
    app = FastAPI(title="DraftPool", docs_url=None, redoc_url=None)
    app.add_middleware(RequestIdMiddleware, max_body_bytes=max_body_bytes, echo_id=echo_request_id)
    if cors_origins:  # the outermost middleware, so that pages can read errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    _add_error_handlers(app)
    _add_model_routes(app, backend)
    _add_generation_routes(app, backend, request_timeout_s)
    add_debug_routes(app, backend)
    return app


def _add_generation_routes(app: FastAPI, backend: Backend, max_s: float | None) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        limit = TimeLimit.from_request(request, max_s)
        async with limit.enforced():
            card = await find_model(backend, body.model)
            special = body.add_special_tokens is not False
            prompts = [
                await encode(card, prompt, add_special_tokens=special) if isinstance(prompt, str) else tuple(prompt)
                for prompt in body.prompts()
            ]
            return await _answer(_Call.of(backend, body, card, prompts, COMPLETION_MAX_TOKENS), request, limit)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        limit = TimeLimit.from_request(request, max_s)
        async with limit.enforced():
            card = await find_model(backend, body.model)
            prompt_ids = await chat_prompt(card, body.messages)
            return await _answer(_Call.of(backend, body, card, [prompt_ids], None), request, limit)


def _add_model_routes(app: FastAPI, backend: Backend) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Liveness of this process."""
        return Response()

    @app.get("/ready")
    async def ready(model: str | None = None) -> Response:
        """Readiness of one model, or of all."""
        if model is not None:
            check_model(backend, model)
        names = list(backend.names) if model is None else [model]
        answers = await asyncio.gather(*map(backend.ready, names))
        if missing := [name for name, answer in zip(names, answers, strict=True) if not answer]:
            raise NotReady(f"not ready: {', '.join(missing)}; try again later")
        return Response()

    @app.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model(card) for card in await loaded_models(backend)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Json:
        return _model(await find_model(backend, model))


def _model(card: ModelCard) -> Json:
    fields = {"id": card.id, "object": "model", "created": card.created, "owned_by": "draftpool"}
    return fields | {"root": card.id, "parent": None, "max_model_len": card.max_model_len}


@dataclass(frozen=True, slots=True)
class _Call:
    """A checked HTTP request: the jobs to run and the form of the reply."""

    backend: Backend
    jobs: Sequence[GenerationJob]
    reply: Reply
    stream: bool
    stream_options: StreamOptions

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
        seeds = [choice_seed(seed, i) for i in range(len(prompts))]
        options = body.options(default_max_tokens, seed)
        param = "messages" if isinstance(body, ChatCompletionRequest) else "prompt"
        reply_id = f"{shape.prefix}{uuid4().hex}"
        jobs = [
            prepare(card, f"{reply_id}-{i}", ids, replace(options, seed=seeds[i]), param)
            for i, ids in enumerate(prompts)
        ]
        length = options.speculation.length if options.speculation else None
        reply = Reply(shape, reply_id, int(time.time()), card.id, seeds, bool(body.return_token_ids), length)
        return _Call(backend, jobs, reply, bool(body.stream), body.stream_options or StreamOptions())

    def deltas(self) -> AsyncGenerator[Indexed, None]:
        turns = self._turns()
        return merge([run_in_turn(turns, run(self.backend, job)) for job in self.jobs])

    async def whole(self) -> Json:
        turns = self._turns()

        async def run_job(job: GenerationJob) -> CompletedChoice:
            async with turns:
                return CompletedChoice.join(await complete(self.backend, job))

        return self.reply.whole(await gather_or_cancel([run_job(job) for job in self.jobs]))

    def _turns(self) -> asyncio.Semaphore:
        """At most one batch of jobs at once, so that a call with many prompts cannot fill a replica's queue."""
        return asyncio.Semaphore(self.jobs[0].card.max_batch)


async def _answer(call: _Call, request: Request, limit: TimeLimit) -> Response:
    if not call.stream:
        return JSONResponse(await run_while_connected(request, call.whole()))
    deltas = limit.apply(call.deltas())
    # The first delta is awaited before the status goes out, so that a full queue is still a 429.
    first = await run_while_connected(request, anext(deltas))
    return EventStream(_events(call, first, deltas, request_id(request)), deltas)


async def _events(
    call: _Call, first: Indexed, deltas: AsyncGenerator[Indexed, None], request_id: str
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
        if call.stream_options.include_usage:
            yield _event(call.reply.usage_chunk([last[index] for index in sorted(last)]))
    except Exception as error:
        yield _event(to_problem(error, request_id).body())
    yield DONE


def _chunk(call: _Call, index: int, delta: Delta) -> str:
    return _event(call.reply.chunk(index, delta) | _usage(call, delta.usage))


def _usage(call: _Call, so_far: Usage) -> Json:
    """The usage field of a chunk: null, as in OpenAI's API, if the last chunk has the totals."""
    if call.stream_options.continuous_usage_stats:
        return {"usage": usage([so_far])}
    return {"usage": None} if call.stream_options.include_usage else {}


def _event(fields: Json) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(DraftPoolError)
    async def draftpool_error(request: Request, error: DraftPoolError) -> Response:
        problem = to_problem(error, request_id(request))
        headers = {"retry-after": str(RETRY_AFTER_S)} if problem.row.retry else None
        return JSONResponse(problem.body(), problem.row.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await draftpool_error(request, invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return _protocol_error(request, error)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)


def _protocol_error(request: Request, error: HTTPException) -> Response:
    """The response to errors of the framework: unknown path or method (404), body too large (413) or missing (400)."""
    missing = error.status_code in (404, 405)
    message: Any = error.detail
    if missing:
        allowed = (error.headers or {}).get("Allow")
        hint = f"; it takes {allowed}" if allowed else ""
        message = printable(f"{request.method} {request.url.path[:200]} does not exist{hint}")
    code = "request_too_large" if error.status_code == 413 else None
    fields = {"message": str(message), "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": fields}, 404 if missing else error.status_code, error.headers)
