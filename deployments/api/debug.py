"""What replicas tell of themselves, for operators: counts, and what the router believes."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from deployments.api.backend import Backend


def add_debug_routes(app: FastAPI, backend: Backend) -> None:
    @app.get("/debug/stats")
    async def stats() -> Response:
        return JSONResponse(await backend.stats())

    @app.get("/debug/router")
    async def router() -> Response:
        return JSONResponse(await backend.router())
