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

from api.answer import Service, answer
from api.backend import Backend, ModelCard, Starting
from api.door import OPEN, Door, DoorMiddleware
from api.errors import error_body, invalid_request, printable, to_problem
from api.limits import CLIENT_GONE_STATUS, LIMITS, LimitsMiddleware, RequestLimits
from api.meter import Meter
from api.metered import MeterMiddleware
from api.metrics import Gather, add_metrics_route, gather_own
from api.middleware import RequestIdMiddleware, request_id
from api.models import check_model, find_model, loaded_models
from api.openai import ChatCompletionRequest, CompletionRequest
from api.openapi import describe
from api.page_route import add_page_routes
from api.responses import ResponsesRequest
from api.spans import NO_SPANS, Spans
from api.streams import NO_HEARTBEAT, ClientGone, Heartbeat
from api.tokenize import add_token_routes
from api.trace import as_json
from api.version import version
from protocol.errors import DraftPoolError, NotReady
from protocol.limits import MAX_ROUNDS

DEFAULT_ROUNDS = 64

Json = dict[str, Any]


def create_app(
    backend: Backend,
    *,
    door: Door = OPEN,
    limits: RequestLimits = LIMITS,
    echo_request_id: bool = True,
    request_timeout_s: float | None = None,
    cors_origins: Sequence[str] = (),
    meter: Meter | None = None,
    gather: Gather | None = None,
    heartbeat: Heartbeat = NO_HEARTBEAT,
    spans: Spans = NO_SPANS,
) -> FastAPI:
    """The application.

    request_timeout_s: upper limit for a completion. cors_origins: sites whose pages may call the API. meter: counts
    what this application answers; None: one of its own. gather: the counts of all processes that make up the API; None:
    there is no other.
    """
    meter = meter or Meter()
    service = Service(backend, meter, request_timeout_s, heartbeat, spans)
    app = FastAPI(title="DraftPool", docs_url=None, redoc_url=None)
    app.add_middleware(LimitsMiddleware, limits=limits)
    app.add_middleware(DoorMiddleware, door=door)
    app.add_middleware(RequestIdMiddleware, echo_id=echo_request_id)
    app.add_middleware(MeterMiddleware, meter=meter)
    if cors_origins:  # the outermost middleware, so that pages can read errors too, and ask without a key if they may
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answer(service, body, request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        return await answer(service, body, request)

    @app.post("/v1/responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        return await answer(service, body, request)

    _add_model_routes(app, backend)
    add_token_routes(app, backend)
    add_metrics_route(app, backend, gather or gather_own(meter))
    _add_debug_routes(app, backend)
    add_page_routes(app)
    _add_error_handlers(app)
    describe(app, backend, is_keyed=door.keys is not None)
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
            raise not_ready(missing, await asyncio.gather(*map(backend.starting, missing)))
        return Response()

    @app.get("/version")
    async def version_of_server() -> Json:
        return {"version": version()}

    @app.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model(card) for card in await loaded_models(backend)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Json:
        return _model(await find_model(backend, model))


def not_ready(missing: Sequence[str], starting: Sequence[Starting]) -> NotReady:
    """Of all of them: the slowest is waited for, and nobody knows when if that of one is not known."""
    told = [f"{name} ({how.progress})" if how.progress else name for name, how in zip(missing, starting, strict=True)]
    left = [how.left_s for how in starting if how.left_s is not None]
    return NotReady(f"not ready: {', '.join(told)}", max(left) if len(left) == len(starting) else None)


def _model(card: ModelCard) -> Json:
    fields = {"id": card.id, "object": "model", "created": card.created, "owned_by": "draftpool"}
    return fields | {"root": card.id, "parent": None, "max_model_len": card.max_model_len}


def _add_debug_routes(app: FastAPI, backend: Backend) -> None:
    """For operators: counters of replicas, the router's beliefs, counts of tokens, and a trace of recent rounds."""

    @app.get("/debug/stats")
    async def stats() -> Mapping[str, Any]:
        return await backend.stats()

    @app.get("/debug/router")
    async def router() -> Mapping[str, Any]:
        return await backend.router()

    @app.get("/debug/tokens")
    async def tokens() -> Mapping[str, Any]:
        """How often each token was written, for `draftpool trim --counts`."""
        return await backend.token_counts()

    @app.get("/debug/trace")
    async def trace(rounds: Annotated[int, Query(ge=1, le=MAX_ROUNDS)] = DEFAULT_ROUNDS) -> Json:
        return as_json(*await backend.trace(rounds))


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(DraftPoolError)
    async def draftpool_error(request: Request, error: DraftPoolError) -> Response:
        problem = to_problem(error, request_id(request))
        return JSONResponse(problem.body(), problem.row.status, problem.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        inside = [each | {"loc": each["loc"][1:]} for each in error.errors()]  # without "body" or "query"
        return await draftpool_error(request, invalid_request(inside))

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        """Unknown path (404) or method (405), or a body that is unreadable (400)."""
        message = str(error.detail)
        if error.status_code in (404, 405):
            allowed = (error.headers or {}).get("Allow")
            hint = f"; it takes {allowed}" if allowed else ""
            message = printable(f"{request.method} {request.url.path[:200]} does not exist{hint}")
        body = error_body(message, "invalid_request_error", None, None)
        return JSONResponse(body, error.status_code, error.headers)
