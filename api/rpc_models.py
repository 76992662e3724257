"""The RPCs beside the completions: what a target is and holds, an end for a request, and grpc.health.v1.

Health is asked like /ready over HTTP: an empty service, or ours, is all targets; the name of a target is that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

from grpc import StatusCode
from grpc_health.v1 import health_pb2

from api.backend import Backend, ModelCard
from api.models import check_model, find_model
from api.refused import CallRefused
from api.rpc import Context, refuse
from protocol.errors import InvalidRequest
from protocol.pb import inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
COUNTS = tuple(pb.ReplicaLoad.DESCRIPTOR.fields_by_name)

Abort = Callable[[str], Awaitable[bool]]


async def model_info(backend: Backend, message: pb.GetModelInfoRequest, context: Context) -> pb.ModelInfo:
    try:
        return _info(await find_model(backend, message.model))
    except Exception as error:
        raise refuse(error, f"info-{uuid4().hex}", context) from None


async def loads(backend: Backend, message: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
    try:
        if message.model:
            check_model(backend, message.model)
        stats = await backend.stats()
    except Exception as error:
        raise refuse(error, f"loads-{uuid4().hex}", context) from None
    models = [
        pb.ModelLoad(model=name, replicas=map(_load, replicas))
        for name, replicas in stats["targets"].items()
        if message.model in ("", name)
    ]
    return pb.GetLoadsResponse(models=models, pool=[_load(_of_pool(each)) for each in stats["pool"]])


async def abort(end: Abort, message: pb.AbortRequest, context: Context) -> pb.AbortResponse:
    """end: ends a request on whichever replica of the API answers it; whether there was one."""
    try:
        if not message.request_id:
            raise InvalidRequest("request_id is missing; send the one that the responses have", "request_id")
        return pb.AbortResponse(was_open=await end(message.request_id))
    except Exception as error:
        raise refuse(error, f"abort-{uuid4().hex}", context) from None


async def check(
    backend: Backend, message: health_pb2.HealthCheckRequest, context: Context
) -> health_pb2.HealthCheckResponse:
    statuses = await list_health(backend)
    if message.service not in statuses.statuses:
        context.set_code(StatusCode.NOT_FOUND)
        context.set_details(f"there is no such service; this server has {', '.join(sorted(statuses.statuses))}")
        raise CallRefused
    return statuses.statuses[message.service]


async def list_health(backend: Backend) -> health_pb2.HealthListResponse:
    kind = health_pb2.HealthCheckResponse
    are_ready = await asyncio.gather(*map(backend.ready, backend.names))
    ready = {**dict(zip(backend.names, are_ready, strict=True)), "": all(are_ready), SERVICE: all(are_ready)}
    statuses = {name: kind(status=kind.SERVING if each else kind.NOT_SERVING) for name, each in ready.items()}
    return health_pb2.HealthListResponse(statuses=statuses)


def refuse_watch(context: Context) -> CallRefused:
    """A watch would hold a place of the ingress for as long as its client lives; the protocol lets a server refuse."""
    context.set_code(StatusCode.UNIMPLEMENTED)
    context.set_details("health is not watched here; call Check now and then")
    return CallRefused()


def _info(card: ModelCard) -> pb.ModelInfo:
    return pb.ModelInfo(
        id=card.id,
        max_model_len=card.max_model_len,
        vocab_size=card.vocab_size,
        eos_token_ids=card.eos_token_ids,
        max_batch=card.max_batch,
        exits=card.exits or (),
        max_draft_length=card.max_draft_length,
        has_chat_template=bool(card.tokenizer.chat_template),
    )


def _load(stats: Mapping[str, Any]) -> pb.ReplicaLoad:
    return pb.ReplicaLoad(**{name: stats[name] for name in COUNTS if name in stats})


def _of_pool(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**stats, "num_running": stats["num_sequences"]}
