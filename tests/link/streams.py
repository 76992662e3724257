"""A sink and the streams to it over a real socket, and waiting for what comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from api.runs import check_runs
from link.secret import Secret
from link.token_sink import Inbox, SinkAddress, TokenSink
from link.token_stream import TokenStreams
from protocol.pb import tokens_pb2 as pb
from protocol.request import FinishReason, TokenRun


class CountingSink(TokenSink):
    """A sink that keeps how many runs each message carried."""

    def __init__(self, secret: Secret) -> None:
        super().__init__(secret)
        self.sizes: list[int] = []

    async def Send(self, batches: AsyncIterator[pb.TokenBatch], context: Any) -> pb.Received:
        async def counted() -> AsyncIterator[pb.TokenBatch]:
            async for batch in batches:
                self.sizes += [len(batch.runs)] if not batch.proof else []
                yield batch

        return await super().Send(counted(), context)


@asynccontextmanager
async def pair(join_ms: float = 20.0) -> AsyncIterator[tuple[CountingSink, SinkAddress, TokenStreams]]:
    async with AsyncExitStack() as stack:
        secret = Secret.fresh()
        sink, streams = CountingSink(secret), TokenStreams()
        address = SinkAddress(await sink.start("127.0.0.1", (0, 0)), join_ms, secret)
        stack.push_async_callback(sink.stop)
        stack.push_async_callback(streams.stop)
        yield sink, address, streams


def run(name: str, index: int, *tokens: int) -> TokenRun:
    return TokenRun(name, index, tokens)


def end(name: str, index: int, *tokens: int) -> TokenRun:
    return TokenRun(name, index, tokens, FinishReason.LENGTH)


async def soon(inbox: Inbox) -> TokenRun:
    got: TokenRun = await asyncio.wait_for(inbox.get(), 5)
    return got


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def checked(runs: Sequence[TokenRun]) -> list[TokenRun]:
    """The runs as an ingress passes them on."""

    async def source() -> AsyncGenerator[TokenRun, None]:
        for each in runs:
            yield each

    async with aclosing(check_runs(source())) as fresh:
        return [each async for each in fresh]
