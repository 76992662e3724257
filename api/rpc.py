"""The gRPC service of protocol/inference.proto over any Backend."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol
from uuid import uuid4

from grpc import StatusCode

from api.backend import Backend
from api.errors import to_problem
from api.generation import Delta, GenerationJob, GenerationOptions, find_model, loaded_models, prepare, run
from api.limits import MAX_BODY_BYTES, too_large
from api.prompts import encode
from api.speculation import OFF, parse_speculation
from protocol.errors import InvalidRequest
from protocol.pb import inference_pb2 as pb
from protocol.plan import Speculation
from protocol.request import FinishReason, SequenceStats

_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


class Context(Protocol):
    """The part of a servicer context that this module uses. Those of grpc.aio and Ray Serve both have it."""

    def set_code(self, code: StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...


class CallRefused(Exception):
    """Ends a call whose status is already set on the context. Its text is shown to the caller."""


async def generate(
    backend: Backend, message: pb.GenerateRequest, context: Context
) -> AsyncGenerator[pb.GenerateResponse, None]:
    request_id = f"gen-{uuid4().hex}"
    try:
        job = await _job(backend, message, request_id)
        async with aclosing(run(backend, job)) as deltas:
            async for delta in deltas:
                yield _response(job, delta)
    except Exception as error:
        raise _refuse(error, request_id, context) from None


async def list_models(backend: Backend, message: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
    try:
        cards = await loaded_models(backend)
    except Exception as error:
        raise _refuse(error, f"list-{uuid4().hex}", context) from None
    return pb.ListModelsResponse(models=[pb.Model(id=card.id, max_model_len=card.max_model_len) for card in cards])


def _refuse(error: Exception, request_id: str, context: Context) -> CallRefused:
    problem = to_problem(error, request_id)
    context.set_code(problem.row.grpc)
    context.set_details(problem.message)
    return CallRefused(problem.message)


async def _job(backend: Backend, message: pb.GenerateRequest, request_id: str) -> GenerationJob:
    if (size := message.ByteSize()) > MAX_BODY_BYTES:
        raise InvalidRequest(too_large(str(size), MAX_BODY_BYTES))
    card = await find_model(backend, message.model)
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt is missing; send text or token_ids", "prompt")
    prompt_ids = await encode(card, message.text) if kind == "text" else tuple(message.token_ids.ids)
    return prepare(card, request_id, prompt_ids, _options(message))


def _options(message: pb.GenerateRequest) -> GenerationOptions:
    fields = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
    return GenerationOptions(
        **{name: getattr(message, name) for name in fields if message.HasField(name)},
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        speculation=_speculation(message.speculation) if message.HasField("speculation") else None,
    )


def _speculation(message: pb.Speculation) -> Speculation | None:
    return parse_speculation({"depth": message.depth, "length": message.length}) if message.length else OFF


def _response(job: GenerationJob, delta: Delta) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        request_id=job.request.request_id, index=delta.index, token_ids=delta.token_ids, text=delta.text
    )
    if delta.finish_reason is not None:
        response.finish_reason = _REASONS[delta.finish_reason]
        response.seed = job.request.sampling.seed
        response.usage.prompt_tokens = delta.usage.prompt_tokens
        response.usage.completion_tokens = delta.usage.completion_tokens
        if delta.stats is not None:
            response.stats.CopyFrom(_stats(delta.stats))
    return response


def _stats(stats: SequenceStats) -> pb.SpeculationStats:
    return pb.SpeculationStats(rounds=stats.rounds, drafted=stats.drafted, accepted=stats.accepted)
