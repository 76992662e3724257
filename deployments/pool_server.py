"""The pool's end of the streams: a gRPC server between target replicas and the worker's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from deployments.listening import bind
from deployments.pool_thread import PoolThread
from protocol.wire import METHOD, SERVICE, PoolMessage, TargetMessage, decode_target, encode_pool

logger = logging.getLogger(__name__)

MAX_OUTBOUND = 64
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


class _Stream:
    """Messages on their way to one target. When it does not read, the oldest is dropped: it is late anyway."""

    def __init__(self) -> None:
        self.incarnation: str | None = None
        self.outbox: asyncio.Queue[PoolMessage | None] = asyncio.Queue(MAX_OUTBOUND)
        self._loop = asyncio.get_running_loop()

    def reply(self, message: PoolMessage) -> None:
        """For any thread."""
        self._loop.call_soon_threadsafe(self.put, message)

    def put(self, message: PoolMessage | None) -> None:
        if self.outbox.full():
            self.outbox.get_nowait()
        self.outbox.put_nowait(message)


class PoolServer:
    """Made, started and stopped on the event loop."""

    def __init__(self, thread: PoolThread) -> None:
        self._thread = thread
        self._streams: dict[str, _Stream] = {}
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(
            self._draft, request_deserializer=decode_target, response_serializer=encode_pool
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    async def start(self, host: str, ports: tuple[int, int]) -> str:
        """The address to be reached at. Raises ConfigError when no port of the range is free."""
        port = bind(self._server.add_insecure_port, host, ports, "pool.ports")
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self, grace_s: float = 0.0) -> None:
        await self._server.stop(grace_s)

    async def _draft(self, messages: AsyncIterator[TargetMessage], context: Any) -> AsyncIterator[PoolMessage]:
        stream = _Stream()
        reader = asyncio.create_task(self._read(messages, stream))
        try:
            while (message := await stream.outbox.get()) is not None:
                yield message
        finally:
            reader.cancel()
            self._end(stream)

    async def _read(self, messages: AsyncIterator[TargetMessage], stream: _Stream) -> None:
        try:
            async for message in messages:
                if stream.incarnation is None:
                    stream.incarnation = message.incarnation
                    self._streams[message.incarnation] = stream
                    logger.info("target %s drafts here", message.incarnation)
                self._thread.receive(message, stream.reply)
        finally:
            stream.put(None)

    def _end(self, stream: _Stream) -> None:
        """A target that has come back on a newer stream keeps its sequences."""
        incarnation = stream.incarnation
        if incarnation is not None and self._streams.get(incarnation) is stream:
            del self._streams[incarnation]
            self._thread.drop(incarnation)
            logger.info("target %s is gone", incarnation)
