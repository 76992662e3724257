"""Spans of requests for OpenTelemetry: one at the door, and one at each target replica that answers.

Here is what the rest of the code knows of them, and the spans that are none. The real ones are in api/otlp.py, which is
imported where an endpoint is set, and not else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from api.generation import Delta
from protocol.errors import ConfigError, DraftPoolError
from protocol.request import GenerateRequest, TokenRun

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

Indexed = tuple[int, Delta]  # (index of the choice, delta)
Deltas = AsyncGenerator[Indexed, None]
Tell = Callable[[TokenRun | DraftPoolError], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """operation: by OpenTelemetry's names, chat or text_completion. streams: whether the answer comes in pieces."""

    operation: str
    model: str
    streams: bool


class Span(Protocol):
    """Of one request, from the door to the end of its answer."""

    def carried(self, request: GenerateRequest) -> GenerateRequest:
        """The request with the span for its target to go on from."""

    def follow(self, deltas: Deltas, answer_id: str, requests: Sequence[GenerateRequest]) -> Deltas:
        """The same deltas, one request for each choice. The span ends with them."""

    def fail(self, error: BaseException) -> None:
        """Ends the span, if nothing has yet."""


class Spans(Protocol):
    def begin(self, asked: Asked, carrier: Mapping[str, str]) -> Span:
        """carrier: headers or metadata, which may name a trace to be part of."""

    def answering(self, model: str, request: GenerateRequest) -> AbstractContextManager[Tell]:
        """A target's part of a request; the block tells what came of it."""

    def close(self) -> None:
        """Sends what is left. Blocks, for some seconds if nobody takes it."""


class NoSpan:
    def carried(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def follow(self, deltas: Deltas, answer_id: str, requests: Sequence[GenerateRequest]) -> Deltas:
        return deltas

    def fail(self, error: BaseException) -> None:
        pass


class NoSpans:
    _span = NoSpan()

    def begin(self, asked: Asked, carrier: Mapping[str, str]) -> Span:
        return self._span

    @contextmanager
    def answering(self, model: str, request: GenerateRequest) -> Iterator[Tell]:
        yield lambda answer: None

    def close(self) -> None:
        pass


NO_SPANS = NoSpans()


def open_spans(endpoint: str | None, environment: Mapping[str, str], instance: str) -> Spans:
    """endpoint: of the config, which goes before the environment's; without either there are no spans. instance: the
    name of this process. Raises ConfigError where packages are missing.
    """
    if not (endpoint or environment.get(ENDPOINT)):
        return NO_SPANS
    try:
        from api.otlp import exporting
    except ImportError as error:
        raise ConfigError(
            f"traces are asked for by {endpoint or ENDPOINT}, and {error.name} is not installed; run "
            "pip install 'draftpool[otel]', or leave the endpoint out"
        ) from None
    return exporting(endpoint, instance)
