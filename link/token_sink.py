"""Where an ingress replica receives tokens that a target commits while their call is still under way.

A token over a Serve handle costs a millisecond of both processes. Over these streams it shares a message with all
requests of the pair. The stream only makes tokens faster: each comes again with the end of its call, so a stream that
breaks, or cannot be opened, delays tokens and loses none. Indices tell which tokens came before.

The secret of this replica goes to targets with their calls. A stream begins with its proof, by both sides:

    target   a nonce, in the call's metadata                     -->
             <-- a nonce and a proof, in the answer's metadata       sink
             the target's proof, as the first message            -->
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from link.listening import bind
from link.secret import NUM_BYTES, Secret
from link.token_runs import MAX_RUNS, from_message
from protocol.checks import at_most
from protocol.pb import tokens_pb2 as pb
from protocol.pb.tokens_pb2_grpc import add_TokensServicer_to_server

logger = logging.getLogger(__name__)

MAX_MESSAGE = 4 << 20
MAX_STREAMS = 256
MAX_STRANGERS = 64  # streams that have proved nothing
HANDSHAKE_S = 5.0
NONCE, PROOF = "nonce-bin", "proof-bin"

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_concurrent_streams", 16),  # of a connection
    ("grpc.max_allowed_incoming_connections", MAX_STREAMS + MAX_STRANGERS),
)

Inbox = asyncio.Queue[Any]  # TokenRun, and what its owner puts there


@dataclass(frozen=True, slots=True)
class SinkAddress:
    """What a target must know to stream to an ingress replica. join_ms: how long it may hold tokens back under load."""

    address: str
    join_ms: float
    secret: Secret = field(repr=False)


class TokenSink:
    """Made, started and stopped on the event loop that reads the inboxes."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._inboxes: dict[str, Inbox] = {}
        self._strangers: dict[asyncio.Timeout, None] = {}  # in the order in which they came
        self._server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_STREAMS + MAX_STRANGERS)
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
        """The runs of a request as they come, repetitions included. Runs of requests that are not open are dropped."""
        inbox = self._inboxes[request_id] = asyncio.Queue()
        try:
            yield inbox
        finally:
            del self._inboxes[request_id]

    async def Send(self, batches: AsyncIterator[pb.TokenBatch], context: Any) -> pb.Received:
        if not await self._proved(batches, context):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this stream does not hold the secret of the ingress")
        try:
            async for batch in batches:
                self._take(batch)
        except ValueError as error:
            logger.warning("a token stream is closed: %s", str(error)[:300])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no target of this version sends that")
        return pb.Received()

    async def _proved(self, batches: AsyncIterator[pb.TokenBatch], context: Any) -> bool:
        """Waits for the proof of a stream. If there are too many strangers, the oldest makes room: it had the most
        time.
        """
        its = dict(context.invocation_metadata()).get(NONCE, b"")
        if len(its) != NUM_BYTES:
            return False
        mine = secrets.token_bytes(NUM_BYTES)
        proof = self._secret.proof(b"sink", its, mine)
        if len(self._strangers) >= MAX_STRANGERS:
            next(iter(self._strangers)).reschedule(0.0)
        limit = asyncio.timeout(HANDSHAKE_S)
        try:
            async with limit:
                self._strangers[limit] = None
                await context.send_initial_metadata(((NONCE, mine), (PROOF, proof)))
                first = await anext(batches)
        except (TimeoutError, StopAsyncIteration):
            return False
        finally:
            self._strangers.pop(limit, None)
        return self._secret.proves(first.proof, b"target", its, mine)

    def _take(self, batch: pb.TokenBatch) -> None:
        """Raises ValueError for an invalid message."""
        at_most("runs", len(batch.runs), MAX_RUNS)
        for run in batch.runs:
            read = from_message(run)
            inbox = self._inboxes.get(read.request_id)
            if inbox is not None:
                inbox.put_nowait(read)
