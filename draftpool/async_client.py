"""The client for asyncio."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar, Unpack

from draftpool.asks import Ask, ChatOptions, CompletionOptions, Message, ask_chat, ask_completion
from draftpool.errors import Refused
from draftpool.over_grpc import AsyncGrpcTransport
from draftpool.over_http import AsyncHttpTransport
from draftpool.retries import Attempts, Clock, Jitter, Retries
from draftpool.transport import AsyncTransport, Server, parse
from draftpool.values import Completion, Delta, Model

T = TypeVar("T")


class AsyncClient:
    """As Client. It belongs to the event loop that it is made on. Cancelling a call cancels the request."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: Retries | None = None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        jitter: Jitter = random.random,
    ) -> None:
        self._transport = open_transport(parse(url, api_key))
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._clock, self._sleep, self._jitter = clock, sleep, jitter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def complete(
        self, model: str, prompt: str | Sequence[int], **options: Unpack[CompletionOptions]
    ) -> Completion:
        """What the model adds to a text or to tokens; 16 tokens unless max_tokens says more."""
        return await self._whole(ask_completion(model, prompt, options), options.get("timeout_s"))

    async def chat(self, model: str, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Completion:
        """The model's answer to messages."""
        return await self._whole(ask_chat(model, messages, options), options.get("timeout_s"))

    def stream(self, model: str, prompt: str | Sequence[int], **options: Unpack[CompletionOptions]) -> AsyncDeltaStream:
        """As `complete`, piece by piece. The request goes out when the first piece is asked for."""
        return self._pieces(ask_completion(model, prompt, options), options.get("timeout_s"))

    def stream_chat(self, model: str, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> AsyncDeltaStream:
        """As `chat`, piece by piece. The request goes out when the first piece is asked for."""
        return self._pieces(ask_chat(model, messages, options), options.get("timeout_s"))

    async def models(self) -> tuple[Model, ...]:
        """The models that the server has loaded."""
        return await self._call(self._transport.models, self._attempts(None))

    async def _whole(self, ask: Ask, timeout_s: float | None) -> Completion:
        return await self._call(lambda limit_s: self._transport.complete(ask, limit_s), self._attempts(timeout_s))

    def _pieces(self, ask: Ask, timeout_s: float | None) -> AsyncDeltaStream:
        return AsyncDeltaStream(self._deltas(ask, timeout_s))

    async def _deltas(self, ask: Ask, timeout_s: float | None) -> AsyncGenerator[Delta, None]:
        attempts = self._attempts(timeout_s)

        async def begin(limit_s: float | None) -> tuple[Delta, AsyncGenerator[Delta, None]]:
            deltas = self._transport.stream(ask, limit_s)
            return await anext(deltas), deltas

        first, rest = await self._call(begin, attempts)
        try:
            yield first
            async for delta in rest:
                yield delta
        except Refused as refused:
            raise refused.error from None
        finally:
            await rest.aclose()

    async def _call(self, attempt: Callable[[float | None], Awaitable[T]], attempts: Attempts) -> T:
        while True:
            try:
                return await attempt(attempts.left_s())
            except Refused as refused:
                pause_s = attempts.pause_s(refused)
            await self._sleep(pause_s)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return Attempts(self._retries, limit_s, self._clock, self._jitter)


class AsyncDeltaStream(AsyncIterator[Delta]):
    """As DeltaStream, with `async with` and `async for`. Leave it or close it: nobody else does in time."""

    def __init__(self, deltas: AsyncGenerator[Delta, None]) -> None:
        self._deltas = deltas

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __anext__(self) -> Delta:
        return await anext(self._deltas)

    async def close(self) -> None:
        await self._deltas.aclose()


def open_transport(server: Server) -> AsyncTransport:
    return AsyncGrpcTransport(server) if server.is_grpc else AsyncHttpTransport(server)
