"""Routes for operators: counters of replicas, the router's beliefs, and a trace of recent rounds."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse

from api.backend import Backend
from api.trace import as_json
from protocol.limits import MAX_ROUNDS

DEFAULT_ROUNDS = 64


def add_debug_routes(app: FastAPI, backend: Backend) -> None:
    @app.get("/debug/stats")
    async def stats() -> Response:
        return JSONResponse(await backend.stats())

    @app.get("/debug/router")
    async def router() -> Response:
        return JSONResponse(await backend.router())

    @app.get("/debug/trace")
    async def trace(rounds: Annotated[int, Query(ge=1, le=MAX_ROUNDS)] = DEFAULT_ROUNDS) -> Response:
        return JSONResponse(as_json(*await backend.trace(rounds)))
