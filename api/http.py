"""OpenAI's HTTP API over any Backend, as a FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from api.answer import answer
from api.backend import Backend, ModelCard
from api.errors import RETRY_AFTER_S, error_body, invalid_request, printable, to_problem
from api.generation import check_model, find_model, loaded_models
from api.middleware import RequestIdMiddleware, request_id
from api.openai import ChatCompletionRequest, CompletionRequest
from api.prompts import MAX_BODY_BYTES
from api.responses import ResponsesRequest
from api.streams import ClientGone
from api.trace import as_json
from protocol.errors import DraftPoolError, NotReady
from protocol.limits import MAX_ROUNDS

CLIENT_GONE_STATUS = 499  # nginx's number; the client has left, so only access logs show it
DEFAULT_ROUNDS = 64

Json = dict[str, Any]


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

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answer(backend, body, request, request_timeout_s)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        return await answer(backend, body, request, request_timeout_s)

    @app.post("/v1/responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        return await answer(backend, body, request, request_timeout_s)

    _add_model_routes(app, backend)
    _add_debug_routes(app, backend)
    _add_error_handlers(app)
    return app


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
        if missing := [name for name, is_ready in zip(names, answers, strict=True) if not is_ready]:
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


def _add_debug_routes(app: FastAPI, backend: Backend) -> None:
    """For operators: counters of replicas, the router's beliefs, and a trace of recent rounds."""

    @app.get("/debug/stats")
    async def stats() -> Mapping[str, Any]:
        return await backend.stats()

    @app.get("/debug/router")
    async def router() -> Mapping[str, Any]:
        return await backend.router()

    @app.get("/debug/trace")
    async def trace(rounds: Annotated[int, Query(ge=1, le=MAX_ROUNDS)] = DEFAULT_ROUNDS) -> Json:
        return as_json(*await backend.trace(rounds))


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(DraftPoolError)
    async def draftpool_error(request: Request, error: DraftPoolError) -> Response:
        problem = to_problem(error, request_id(request))
        headers = {"retry-after": str(RETRY_AFTER_S)} if problem.row.retry else None
        return JSONResponse(problem.body(), problem.row.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        inside = [each | {"loc": each["loc"][1:]} for each in error.errors()]  # without "body" or "query"
        return await draftpool_error(request, invalid_request(inside))

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        """Unknown path or method (404), body too large (413) or unreadable (400)."""
        status, message = error.status_code, str(error.detail)
        if status in (404, 405):
            allowed = (error.headers or {}).get("Allow")
            hint = f"; it takes {allowed}" if allowed else ""
            status, message = 404, printable(f"{request.method} {request.url.path[:200]} does not exist{hint}")
        code = "request_too_large" if status == 413 else None
        return JSONResponse(error_body(message, "invalid_request_error", None, code), status, error.headers)
