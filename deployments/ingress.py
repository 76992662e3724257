"""The ingress: a Serve deployment with OpenAI's API over HTTP and gRPC, in front of one handle per target.

The API itself is in api/, which does not import Ray; deployments/backend.py connects it with the targets.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial

from grpc_health.v1 import health_pb2
from prometheus_client.metrics_core import Metric
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from starlette.types import ASGIApp

from api import rpc, rpc_models
from api.http import create_app
from api.meter import Meter
from api.streams import Heartbeat
from api.survival import Recovery
from deployments.access import listens_beyond_loopback, open_door
from deployments.backend import ServeBackend
from deployments.config import HttpConfig, IngressConfig
from deployments.config_access import AccessConfig
from deployments.config_telemetry import TelemetryConfig
from deployments.descriptions import recall
from deployments.handles import Handle
from deployments.host import resolve_host
from deployments.lasting import keep
from deployments.siblings import Siblings
from deployments.telemetry import begin_telemetry
from link.counts import replica_name
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
        most: Mapping[str, int] | None = None,
        telemetry: TelemetryConfig | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        """most: requests that are answered here at once, by model; others have no bound. keys: of the descriptions that
        the cluster keeps, by model.
        """
        self._http = http or HttpConfig()
        name = replica_name(serve.get_replica_context().replica_id.unique_id)
        self._spans = begin_telemetry(telemetry or TelemetryConfig(), name)
        is_public = await listens_beyond_loopback()
        self._door = open_door(access or AccessConfig(), os.environ, is_public=is_public)
        secret = Secret.of(os.environ)
        self._sink = TokenSink(secret)
        address = await self._sink.start(resolve_host(config.host), config.ports)
        sink_address = SinkAddress(address, config.join_ms, secret)
        recovery = Recovery(config.reissues, config.recover_s)
        self._siblings = Siblings()
        known = partial(recall, keys or {})
        self._backend = ServeBackend(
            handles, tokenizers, self._sink, sink_address, pool, config.silence_s, recovery, most, known
        )
        self._backend.warm_up()
        self._learning = asyncio.gather(*map(self._backend.card, self._backend.names))
        self._meter = Meter(name)
        self._is_only = config.num_replicas == 1
        keep()

    async def __del__(self) -> None:
        self._learning.cancel()
        await self._sink.stop()
        await asyncio.to_thread(self._spans.close)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(
            self._backend,
            echo_request_id=False,  # Serve's proxy echoes it
            door=self._door,
            request_timeout_s=self._http.request_timeout_s,
            cors_origins=self._http.cors_origins,
            meter=self._meter,
            gather=self._gather,
            heartbeat=Heartbeat(self._http.heartbeat_s),
            spans=self._spans,
        )

    async def counts(self) -> tuple[str, list[Metric]]:
        """The name of this replica, and what it has counted."""
        return self._meter.replica, self._meter.families()

    async def _gather(self) -> Sequence[Metric]:
        """The counts of all replicas of the ingress that answer, so that it is the same which one is asked."""
        own = await self.counts()
        others: list[tuple[str, list[Metric]]] = [] if self._is_only else await self._siblings.ask("counts")
        return [metric for families in dict([own, *others]).values() for metric in families]

    async def Generate(
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        rpc.admit(self._door, grpc_context)
        async with aclosing(rpc.generate(self._backend, request, grpc_context, self._meter, self._spans)) as responses:
            async for response in responses:
                yield response

    async def ListModels(
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        rpc.admit(self._door, grpc_context)
        return await rpc.list_models(self._backend, request, grpc_context, self._meter)

    async def Chat(
        self, request: pb.ChatRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        rpc.admit(self._door, grpc_context)
        async with aclosing(rpc.chat(self._backend, request, grpc_context, self._meter, self._spans)) as responses:
            async for response in responses:
                yield response

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, grpc_context: RayServegRPCContext) -> pb.ModelInfo:
        rpc.admit(self._door, grpc_context)
        return await rpc_models.model_info(self._backend, request, grpc_context)

    async def GetLoads(self, request: pb.GetLoadsRequest, grpc_context: RayServegRPCContext) -> pb.GetLoadsResponse:
        rpc.admit(self._door, grpc_context)
        return await rpc_models.loads(self._backend, request, grpc_context)

    async def Abort(self, request: pb.AbortRequest, grpc_context: RayServegRPCContext) -> pb.AbortResponse:
        rpc.admit(self._door, grpc_context)
        return await rpc_models.abort(self._abort, request, grpc_context)

    async def abort_here(self, request_id: str) -> bool:
        """Ends a request that this replica answers; whether there was one."""
        return self._backend.open.abort(request_id)

    async def _abort(self, request_id: str) -> bool:
        return await self.abort_here(request_id) or any(await self._siblings.ask("abort_here", request_id))

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthCheckResponse:
        """grpc.health.v1, without a key like /ready. Serve's proxy calls it like our own RPCs."""
        return await rpc_models.check(self._backend, request, grpc_context)

    async def List(
        self, request: health_pb2.HealthListRequest, grpc_context: RayServegRPCContext
    ) -> health_pb2.HealthListResponse:
        return await rpc_models.list_health(self._backend)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        raise rpc_models.refuse_watch(grpc_context)
        yield
