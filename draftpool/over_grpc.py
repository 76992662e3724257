"""The transports over gRPC: the service of protocol/inference.proto. What does not wait is shared by both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from api.seeds import unsigned_seed
from draftpool.errors import ConnectionLost, Refused, ServerFault, grpc_error, retry_after
from draftpool.transport import Server
from draftpool.values import Acceptance, Ask, Completion, Delta, Model, Usage, completion_of
from protocol.errors import InvalidRequest
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from protocol.plan import Speculation
from protocol.request import FinishReason

OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
REASONS = {pb.FINISH_REASON_STOP: FinishReason.STOP, pb.FINISH_REASON_LENGTH: FinishReason.LENGTH}

Metadata = tuple[tuple[str, str], ...]


class GrpcTransport:
    def __init__(self, server: Server) -> None:
        secure = server.scheme == "grpcs"
        self._channel = (
            grpc.secure_channel(server.address, grpc.ssl_channel_credentials(), OPTIONS)
            if secure
            else grpc.insecure_channel(server.address, OPTIONS)
        )
        self._stub, self._metadata = _stub(self._channel), _metadata(server)

    def complete(self, ask: Ask, limit_s: float | None) -> Completion:
        return completion_of(list(self.stream(ask, limit_s)))

    def stream(self, ask: Ask, limit_s: float | None) -> Generator[Delta, None, None]:
        method, message = _asking(self._stub, ask)
        last: Delta | None = None
        with _translated():
            call = method(message, timeout=limit_s, metadata=self._metadata)
            try:
                for response in call:
                    last = _delta(response)
                    yield last
                _check_end(last)
            finally:
                call.cancel()

    def models(self, limit_s: float | None) -> tuple[Model, ...]:
        with _translated():
            request = pb.ListModelsRequest()
            return _models(self._stub.ListModels(request, timeout=limit_s, metadata=self._metadata))

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    def __init__(self, server: Server) -> None:
        secure = server.scheme == "grpcs"
        self._channel = (
            grpc.aio.secure_channel(server.address, grpc.ssl_channel_credentials(), OPTIONS)
            if secure
            else grpc.aio.insecure_channel(server.address, OPTIONS)
        )
        self._stub, self._metadata = _stub(self._channel), _metadata(server)

    async def complete(self, ask: Ask, limit_s: float | None) -> Completion:
        return completion_of([delta async for delta in self.stream(ask, limit_s)])

    async def stream(self, ask: Ask, limit_s: float | None) -> AsyncGenerator[Delta, None]:
        method, message = _asking(self._stub, ask)
        last: Delta | None = None
        with _translated():
            call = method(message, timeout=limit_s, metadata=self._metadata)
            try:
                async for response in call:
                    last = _delta(response)
                    yield last
                _check_end(last)
            finally:
                call.cancel()

    async def models(self, limit_s: float | None) -> tuple[Model, ...]:
        with _translated():
            request = pb.ListModelsRequest()
            return _models(await self._stub.ListModels(request, timeout=limit_s, metadata=self._metadata))

    async def close(self) -> None:
        await self._channel.close()


@contextmanager
def _translated() -> Generator[None, None, None]:
    """Raises Refused in place of what grpc raises."""
    try:
        yield
    except grpc.RpcError as error:
        told: Any = error
        trailing = dict(told.trailing_metadata() or ())
        asked_s = retry_after(trailing.get("retry-after"))
        raise Refused(grpc_error(told.code(), told.details() or ""), asked_s) from None


def _stub(channel: Any) -> Any:
    return pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]


def _metadata(server: Server) -> Metadata:
    key = () if server.api_key is None else (("authorization", f"Bearer {server.api_key}"),)
    return (("application", server.application), *key)


def _asking(stub: Any, ask: Ask) -> tuple[Any, Any]:
    """The method to call, and its message. Raises Refused for a value that the message cannot hold."""
    try:
        request = _request(ask)
        if ask.messages is None:
            return stub.Generate, request
        messages = [pb.ChatMessage(**message) for message in ask.messages]
        return stub.Chat, pb.ChatRequest(messages=messages, options=request)
    except InvalidRequest as error:
        raise Refused(error) from None
    except (ValueError, TypeError) as error:
        raise Refused(InvalidRequest(f"an option has a wrong type or is out of range: {error}")) from None


def _request(ask: Ask) -> pb.GenerateRequest:
    fields = dict(ask.options)
    if isinstance(stop := fields.get("stop"), str):
        fields["stop"] = [stop]
    if (seed := fields.get("seed")) is not None:
        fields["seed"] = unsigned_seed(seed)
    if (asked := fields.get("speculation")) is not None:
        chosen = asked if isinstance(asked, Speculation) else Speculation(0, 0)
        fields["speculation"] = pb.Speculation(depth=chosen.depth, length=chosen.length)
    if isinstance(ask.prompt, str):
        fields["text"] = ask.prompt
    elif ask.prompt is not None:
        fields["token_ids"] = pb.TokenIds(ids=ask.prompt)
    return pb.GenerateRequest(model=ask.model, **fields)


def _delta(response: pb.GenerateResponse) -> Delta:
    ids = tuple(response.token_ids)
    if response.finish_reason == pb.FINISH_REASON_UNSPECIFIED:
        return Delta(response.request_id, response.text, ids)
    reason, usage, stats = REASONS.get(response.finish_reason), response.usage, response.stats
    if reason is None:
        raise Refused(ServerFault(f"the server ended with a reason that is unknown here: {response.finish_reason}"))
    told = Acceptance(stats.rounds, stats.drafted, stats.accepted) if stats.drafted else None
    spent = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return Delta(response.request_id, response.text, ids, reason, spent, told, response.seed)


def _check_end(last: Delta | None) -> None:
    if last is None or last.finish_reason is None:
        raise Refused(ConnectionLost("the stream broke off before its end"))


def _models(response: pb.ListModelsResponse) -> tuple[Model, ...]:
    found: Sequence[pb.Model] = response.models
    return tuple(Model(model.id, model.max_model_len) for model in found)
