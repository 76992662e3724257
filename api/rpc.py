"""The gRPC service of protocol/inference.proto over any Backend. A message means what the same HTTP body means."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar
from uuid import uuid4

from grpc import StatusCode
from pydantic import ValidationError

from api.backend import Backend
from api.chat import chat_prompt
from api.door import HEADER, Door
from api.errors import RETRY_AFTER_S, invalid_request, to_problem
from api.generation import Delta, GenerationJob, find_model, loaded_models, prepare, stream
from api.meter import Meter
from api.metered import streamed
from api.openai import ChatCompletionRequest, CompletionRequest
from api.prompts import MAX_BODY_BYTES, prompt_ids, too_large
from api.scores import Score, ScoredToken
from api.seeds import draw_seed
from api.spans import NO_SPANS, Asked, Spans
from api.streams import merge
from protocol.errors import InvalidRequest, Unauthenticated
from protocol.pb import inference_pb2 as pb
from protocol.request import FinishReason

_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


class Context(Protocol):
    """The part of a servicer context that this module uses. Those of grpc.aio and Ray Serve both have it."""

    def set_code(self, code: StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str]]: ...
    def set_trailing_metadata(self, trailing_metadata: Any) -> None: ...


class CallRefused(Exception):
    """Ends a call whose status is already set on the context. Its text is shown to the caller."""

    def __init__(self, message: str = "", code: StatusCode = StatusCode.UNKNOWN) -> None:
        super().__init__(message)
        self.code = code


class CallBody(CompletionRequest):
    """The fields of a GenerateRequest."""

    default_max_tokens: ClassVar[int | None] = None


Body = TypeVar("Body", CallBody, ChatCompletionRequest)


def admit(door: Door, context: Context) -> None:
    """Raises CallRefused, with UNAUTHENTICATED, for a caller without a key. Every RPC of ours begins with it."""
    try:
        door.admit_caller(dict(context.invocation_metadata()).get(HEADER))
    except Unauthenticated as error:
        raise refuse(error, f"call-{uuid4().hex}", context) from None


def refuse(error: Exception, request_id: str, context: Context) -> CallRefused:
    """The exception that ends the call, with the status of `error` set on the context."""
    problem = to_problem(error, request_id)
    if problem.row.retry:
        context.set_trailing_metadata([("retry-after", str(RETRY_AFTER_S))])
    context.set_code(problem.row.grpc)
    context.set_details(problem.message)
    return CallRefused(problem.message, problem.row.grpc)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is to be answered, and what watches it."""

    method: str
    asked: Asked
    context: Context
    meter: Meter
    spans: Spans


async def generate(
    backend: Backend,
    message: pb.GenerateRequest,
    context: Context,
    meter: Meter | None = None,
    spans: Spans = NO_SPANS,
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """meter: counts the call; None: it is counted nowhere."""
    call = _Call("Generate", Asked("text_completion", message.model, True), context, meter or Meter(), spans)

    async def prepared(request_id: str) -> GenerationJob:
        body = _body(message)
        card = await find_model(backend, body.model)
        with card.places.entered():
            (prompt,) = await prompt_ids(card, body)
        (echo,) = body.echoes()
        return prepare(card, request_id, prompt, body, _seed(body), echo=echo)

    async with aclosing(_answers(call, backend, prepared)) as responses:
        async for response in responses:
            yield response


async def chat(
    backend: Backend, message: pb.ChatRequest, context: Context, meter: Meter | None = None, spans: Spans = NO_SPANS
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """meter: as for `generate`."""
    call = _Call("Chat", Asked("chat", message.options.model, True), context, meter or Meter(), spans)

    async def prepared(request_id: str) -> GenerationJob:
        body = _chat_body(message)
        card = await find_model(backend, body.model)
        with card.places.entered():
            prompt = await chat_prompt(card, body.messages)
        return prepare(card, request_id, prompt, body, _seed(body))

    async with aclosing(_answers(call, backend, prepared)) as responses:
        async for response in responses:
            yield response


async def _answers(
    call: _Call, backend: Backend, prepared: Callable[[str], Awaitable[GenerationJob]]
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """The responses to one call. prepared: its job, by the id of the request."""
    request_id, arrived = f"gen-{uuid4().hex}", call.meter.clock()
    span = call.spans.begin(call.asked, dict(call.context.invocation_metadata()))
    with _answering(call.method, request_id, call.context, call.meter):
        try:
            job = await prepared(request_id)
        except BaseException as error:
            span.fail(error)
            raise
        job = replace(job, request=span.carried(job.request))
        deltas = merge([streamed(call.meter, job, stream(backend, job), arrived)], 1)
        async with aclosing(span.follow(deltas, request_id, [job.request])) as followed:
            async for _, delta in followed:
                yield _response(job, delta)


def _seed(body: CallBody | ChatCompletionRequest) -> int:
    return draw_seed() if body.seed is None else body.seed


async def list_models(
    backend: Backend, message: pb.ListModelsRequest, context: Context, meter: Meter | None = None
) -> pb.ListModelsResponse:
    """meter: as for `generate`."""
    with _answering("ListModels", f"list-{uuid4().hex}", context, meter or Meter()):
        cards = await loaded_models(backend)
        return pb.ListModelsResponse(models=[pb.Model(id=card.id, max_model_len=card.max_model_len) for card in cards])


@contextmanager
def _answering(method: str, request_id: str, context: Context, meter: Meter) -> Iterator[None]:
    """Counts the call by its status. Ends it with the status of the error, if there is one."""
    code = StatusCode.CANCELLED
    try:
        yield
        code = StatusCode.OK
    except Exception as error:
        refused = refuse(error, request_id, context)
        code = refused.code
        raise refused from None
    finally:
        meter.calls.labels(method, code.name).inc()


def _body(message: pb.GenerateRequest) -> CallBody:
    """Raises InvalidRequest."""
    _check_size(message)
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt is missing; send text or token_ids", "prompt")
    prompt = message.text if kind == "text" else [list(message.token_ids.ids)]
    return _validated(CallBody, _options(message) | {"prompt": prompt})


def _chat_body(message: pb.ChatRequest) -> ChatCompletionRequest:
    """Raises InvalidRequest."""
    _check_size(message)
    if (kind := message.options.WhichOneof("prompt")) is not None:
        raise InvalidRequest(f"options.{kind} is a prompt, and the messages are one; leave it out", "prompt")
    messages = [{"role": one.role, "content": one.content} for one in message.messages]
    options = _options(message.options)
    if "logprobs" in options:
        options |= {"logprobs": True, "top_logprobs": options["logprobs"]}
    return _validated(ChatCompletionRequest, options | {"messages": messages})


def _check_size(message: pb.GenerateRequest | pb.ChatRequest) -> None:
    if (size := message.ByteSize()) > MAX_BODY_BYTES:
        raise InvalidRequest(too_large(str(size), MAX_BODY_BYTES))


def _options(message: pb.GenerateRequest) -> dict[str, Any]:
    """The fields of the same HTTP body but for the prompt."""
    fields: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    fields = {name: value for name, value in fields.items() if name not in ("text", "token_ids")}
    fields |= {"stop": list(message.stop), "stop_token_ids": list(message.stop_token_ids)}
    fields["logit_bias"] = {str(token): bias for token, bias in message.logit_bias.items()}
    if asked := fields.get("speculation"):
        fields["speculation"] = {"depth": asked.depth, "length": asked.length} if asked.length else "off"
    return fields


def _validated(kind: type[Body], fields: dict[str, Any]) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


def _response(job: GenerationJob, delta: Delta) -> pb.GenerateResponse:
    response = pb.GenerateResponse(
        request_id=job.request.request_id, index=delta.index, token_ids=delta.token_ids, text=delta.text
    )
    response.logprobs.extend(map(_logprobs, delta.scores))
    if delta.finish_reason is not None:
        response.finish_reason = _REASONS[delta.finish_reason]
        response.seed = job.request.sampling.seed
        response.usage.prompt_tokens = len(job.request.prompt_ids)
        response.usage.completion_tokens = delta.num_tokens
        response.usage.cached_tokens = delta.num_cached
    if (stats := delta.stats) is not None:
        counts = pb.SpeculationStats(rounds=stats.rounds, drafted=stats.drafted, accepted=stats.accepted)
        response.stats.CopyFrom(counts)
    return response


def _logprobs(score: Score) -> pb.Logprobs:
    return pb.Logprobs(chosen=_token(score.chosen), top=map(_token, score.top))


def _token(token: ScoredToken) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, logprob=token.logprob, spelling=token.spelling)
