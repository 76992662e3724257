"""The gRPC services over any backend, on a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from api import rpc, rpc_models
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from tests.api.api_twins import Twin


class Servicer:
    """What Ray Serve's proxy does with the ingress's methods, on a plain grpc.aio server."""

    def __init__(self, backend: Twin) -> None:
        self._backend = backend

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async with aclosing(rpc.generate(self._backend, request, context)) as responses:
            async for response in responses:
                yield response

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async with aclosing(rpc.chat(self._backend, request, context)) as responses:
            async for response in responses:
                yield response

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return await rpc.list_models(self._backend, request, context)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.ModelInfo:
        return await rpc_models.model_info(self._backend, request, context)

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Any) -> pb.GetLoadsResponse:
        return await rpc_models.loads(self._backend, request, context)

    async def Abort(self, request: pb.AbortRequest, context: Any) -> pb.AbortResponse:
        async def end(request_id: str) -> bool:
            return self._backend.open.abort(request_id)

        return await rpc_models.abort(end, request, context)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        return await rpc_models.check(self._backend, request, context)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        return await rpc_models.list_health(self._backend)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> AsyncIterator[Any]:
        raise rpc_models.refuse_watch(context)
        yield


@asynccontextmanager
async def rpc_server(backend: Twin) -> AsyncIterator[str]:
    """Yields its address."""
    server, servicer = grpc.aio.server(), Servicer(backend)
    pb_grpc.add_InferenceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
