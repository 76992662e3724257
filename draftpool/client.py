"""The client that waits for its answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Self, TypeVar, Unpack

from draftpool.asks import Ask, ChatOptions, CompletionOptions, Message, ask_chat, ask_completion
from draftpool.errors import Refused
from draftpool.over_grpc import GrpcTransport
from draftpool.over_http import HttpTransport
from draftpool.retries import Attempts, Clock, Jitter, Retries
from draftpool.transport import Server, Transport, parse
from draftpool.values import Completion, Delta, Model

T = TypeVar("T")


class Client:
    """A client of one server, for use by any number of threads.

    url: http://HOST:PORT, https://, grpc:// or grpcs://. timeout_s: of a call that gives none, retries and pauses
    included; None: no limit. clock, sleep, jitter: of the retries; seconds, and a random number in [0, 1). Methods
    raise DraftPoolError.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        retries: Retries | None = None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Jitter = random.random,
    ) -> None:
        self._transport = open_transport(parse(url, api_key))
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._clock, self._sleep, self._jitter = clock, sleep, jitter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def complete(self, model: str, prompt: str | Sequence[int], **options: Unpack[CompletionOptions]) -> Completion:
        """What the model adds to a text or to tokens; 16 tokens unless max_tokens says more."""
        return self._whole(ask_completion(model, prompt, options), options.get("timeout_s"))

    def chat(self, model: str, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Completion:
        """The model's answer to messages."""
        return self._whole(ask_chat(model, messages, options), options.get("timeout_s"))

    def stream(self, model: str, prompt: str | Sequence[int], **options: Unpack[CompletionOptions]) -> DeltaStream:
        """As `complete`, piece by piece. The request goes out when the first piece is asked for."""
        return self._pieces(ask_completion(model, prompt, options), options.get("timeout_s"))

    def stream_chat(self, model: str, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> DeltaStream:
        """As `chat`, piece by piece. The request goes out when the first piece is asked for."""
        return self._pieces(ask_chat(model, messages, options), options.get("timeout_s"))

    def models(self) -> tuple[Model, ...]:
        """The models that the server has loaded."""
        return self._call(self._transport.models, self._attempts(None))

    def _whole(self, ask: Ask, timeout_s: float | None) -> Completion:
        return self._call(lambda limit_s: self._transport.complete(ask, limit_s), self._attempts(timeout_s))

    def _pieces(self, ask: Ask, timeout_s: float | None) -> DeltaStream:
        return DeltaStream(self._deltas(ask, timeout_s))

    def _deltas(self, ask: Ask, timeout_s: float | None) -> Generator[Delta, None, None]:
        attempts = self._attempts(timeout_s)

        def begin(limit_s: float | None) -> tuple[Delta, Generator[Delta, None, None]]:
            deltas = self._transport.stream(ask, limit_s)
            return next(deltas), deltas

        first, rest = self._call(begin, attempts)
        try:
            yield first
            yield from rest
        except Refused as refused:
            raise refused.error from None
        finally:
            rest.close()

    def _call(self, attempt: Callable[[float | None], T], attempts: Attempts) -> T:
        while True:
            try:
                return attempt(attempts.left_s())
            except Refused as refused:
                pause_s = attempts.pause_s(refused)
            self._sleep(pause_s)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return Attempts(self._retries, limit_s, self._clock, self._jitter)


class DeltaStream(Iterator[Delta]):
    """The pieces of an answer. Closing it, or leaving its `with`, cancels what is left on the server."""

    def __init__(self, deltas: Generator[Delta, None, None]) -> None:
        self._deltas = deltas

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        self._deltas.close()


def open_transport(server: Server) -> Transport:
    return GrpcTransport(server) if server.is_grpc else HttpTransport(server)
