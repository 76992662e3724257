"""The gRPC service of protocol/inference.proto over any Backend. A message means what the same HTTP body means."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar, Protocol
from uuid import uuid4

from grpc import StatusCode
from pydantic import ValidationError

from api.backend import Backend
from api.errors import invalid_request, to_problem
from api.generation import Delta, GenerationJob, find_model, loaded_models, prepare, stream
from api.openai import CompletionRequest
from api.prompts import MAX_BODY_BYTES, prompt_ids, too_large
from api.seeds import draw_seed
from protocol.errors import InvalidRequest
from protocol.pb import inference_pb2 as pb
from protocol.request import FinishReason

_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


class Context(Protocol):
    """The part of a servicer context that this module uses. Those of grpc.aio and Ray Serve both have it."""

    def set_code(self, code: StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...


class CallRefused(Exception):
    """Ends a call whose status is already set on the context. Its text is shown to the caller."""


class CallBody(CompletionRequest):
    """The fields of a GenerateRequest."""

    default_max_tokens: ClassVar[int | None] = None


async def generate(
    backend: Backend, message: pb.GenerateRequest, context: Context
) -> AsyncGenerator[pb.GenerateResponse, None]:
    request_id = f"gen-{uuid4().hex}"
    try:
        body = _body(message)
        card = await find_model(backend, body.model)
        (prompt,) = await prompt_ids(card, body)
        (echo,) = body.echoes()
        job = prepare(card, request_id, prompt, body, draw_seed() if body.seed is None else body.seed, echo=echo)
        async with aclosing(stream(backend, job)) as deltas:
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


def _body(message: pb.GenerateRequest) -> CallBody:
    """Raises InvalidRequest."""
    if (size := message.ByteSize()) > MAX_BODY_BYTES:
        raise InvalidRequest(too_large(str(size), MAX_BODY_BYTES))
    fields: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt is missing; send text or token_ids", "prompt")
    prompt = fields.pop(kind)
    fields["prompt"] = prompt if kind == "text" else [list(prompt.ids)]
    fields |= {"stop": list(message.stop), "stop_token_ids": list(message.stop_token_ids)}
    if asked := fields.get("speculation"):
        fields["speculation"] = {"depth": asked.depth, "length": asked.length} if asked.length else "off"
    try:
        return CallBody.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


def _response(job: GenerationJob, delta: Delta) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        request_id=job.request.request_id, index=delta.index, token_ids=delta.token_ids, text=delta.text
    )
    if delta.finish_reason is not None:
        response.finish_reason = _REASONS[delta.finish_reason]
        response.seed = job.request.sampling.seed
        response.usage.prompt_tokens = len(job.request.prompt_ids)
        response.usage.completion_tokens = delta.num_tokens
    if (stats := delta.stats) is not None:
        counts = pb.SpeculationStats(rounds=stats.rounds, drafted=stats.drafted, accepted=stats.accepted)
        response.stats.CopyFrom(counts)
    return response
