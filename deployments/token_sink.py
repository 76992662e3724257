"""Where an ingress replica takes tokens: what a target commits comes here while the call itself is still under way.

A token over a Serve handle costs a millisecond of both processes; over these streams it rides in a message for all
requests of the pair. The stream is only the faster way: every token comes again with the end of its call, so one that
breaks, or cannot be opened, delays tokens and loses none. Indices tell what came before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from deployments.listening import bind
from protocol.pb import tokens_pb2 as pb
from protocol.pb.tokens_pb2_grpc import add_TokensServicer_to_server
from protocol.request import TokenRun

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)

Inbox = asyncio.Queue[Any]  # TokenRun, and what its owner puts there


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """What a target must know to stream to an ingress replica. join_ms: how long it may hold tokens under load."""

    address: str
    join_ms: float


class TokenSink:
    """Made, started and stopped on the event loop that the inboxes are read on."""

    def __init__(self) -> None:
        self._inboxes: dict[str, Inbox] = {}
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        add_TokensServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]

    async def start(self, host: str, ports: tuple[int, int]) -> str:
        """The address to be reached at. Raises ConfigError when no port of the range is free."""
        port = bind(self._server.add_insecure_port, host, ports, "ingress.ports")
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self) -> None:
        await self._server.stop(0)

    @contextmanager
    def open(self, request_id: str) -> Iterator[Inbox]:
        """The runs of a request as they come, as often as they come; those of requests not open are dropped."""
        inbox = self._inboxes[request_id] = asyncio.Queue()
        try:
            yield inbox
        finally:
            del self._inboxes[request_id]

    async def Send(self, batches: AsyncIterator[pb.TokenBatch], context: Any) -> pb.Received:
        async for batch in batches:
            for run in batch.runs:
                inbox = self._inboxes.get(run.request_id)
                if inbox is not None:
                    inbox.put_nowait(TokenRun(run.request_id, run.index, tuple(run.token_ids)))
        return pb.Received()
