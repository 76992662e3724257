"""The transports over gRPC: the service of protocol/inference.proto. What does not wait is shared by both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from draftpool.asks import Ask
from draftpool.errors import ConnectionLost, Refused, grpc_error, told_pause
from draftpool.messages import delta_of, request_of
from draftpool.transport import Server
from draftpool.values import Completion, Delta, Model, completion_of
from protocol.errors import InvalidRequest
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc

OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))

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
                    last = delta_of(response)
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
                    last = delta_of(response)
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
        details = told.details() or ""
        raise Refused(grpc_error(told.code(), details), told_pause(details)) from None


def _stub(channel: Any) -> Any:
    return pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]


def _metadata(server: Server) -> Metadata:
    key = () if server.api_key is None else (("authorization", f"Bearer {server.api_key}"),)
    return (("application", server.application), *key)


def _asking(stub: Any, ask: Ask) -> tuple[Any, Any]:
    """The method to call, and its message. Raises Refused for what no message can say."""
    try:
        return (stub.Generate if ask.messages is None else stub.Chat), request_of(ask)
    except InvalidRequest as error:
        raise Refused(error) from None


def _check_end(last: Delta | None) -> None:
    if last is None or last.finish_reason is None:
        raise Refused(ConnectionLost("the stream broke off before its end"))


def _models(response: pb.ListModelsResponse) -> tuple[Model, ...]:
    found: Sequence[pb.Model] = response.models
    return tuple(Model(model.id, model.max_model_len) for model in found)
