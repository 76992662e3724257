"""The ingress: a Serve deployment with OpenAI's API over HTTP and gRPC, in front of one handle per target.

The API itself is in api/, which does not import Ray; deployments/backend.py connects it with the targets.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from starlette.types import ASGIApp

from api import rpc
from api.http import create_app
from api.survival import Recovery
from deployments.access import listens_beyond_loopback, open_door
from deployments.backend import Handle, ServeBackend
from deployments.config import HttpConfig, IngressConfig
from deployments.config_access import AccessConfig
from deployments.host import resolve_host
from link.secret import Secret
from link.token_sink import SinkAddress, TokenSink
from protocol.pb import inference_pb2 as pb


@serve.deployment(name="ingress")
@serve.ingress()
class Ingress:
    """The ingress deployment. Serve's gRPC proxy calls the methods that are named like the RPCs."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        handles: Mapping[str, Handle],
        tokenizers: Mapping[str, str],
        config: IngressConfig,
        pool: Handle | None = None,
        http: HttpConfig | None = None,
        access: AccessConfig | None = None,
    ) -> None:
        self._http = http or HttpConfig()
        is_public = await listens_beyond_loopback()
        self._door = open_door(access or AccessConfig(), os.environ, is_public=is_public)
        secret = Secret.of(os.environ)
        self._sink = TokenSink(secret)
        address = await self._sink.start(resolve_host(config.host), config.ports)
        sink_address = SinkAddress(address, config.join_ms, secret)
        recovery = Recovery(config.reissues, config.recover_s)
        self._backend = ServeBackend(handles, tokenizers, self._sink, sink_address, pool, config.silence_s, recovery)
        self._backend.warm_up()

    async def __del__(self) -> None:
        await self._sink.stop()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(
            self._backend,
            echo_request_id=False,  # Serve's proxy echoes it
            door=self._door,
            request_timeout_s=self._http.request_timeout_s,
            cors_origins=self._http.cors_origins,
        )

    async def Generate(
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        rpc.admit(self._door, grpc_context)
        async with aclosing(rpc.generate(self._backend, request, grpc_context)) as responses:
            async for response in responses:
                yield response

    async def ListModels(
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        rpc.admit(self._door, grpc_context)
        return await rpc.list_models(self._backend, request, grpc_context)
