"""Spans of requests, sent to an OpenTelemetry collector over OTLP. Names are those of the conventions for GenAI.

Spans wait in a bounded queue for a thread of the exporter. If nobody takes them they are dropped, and no request waits.
"""

from __future__ import annotations

import os
import time
from asyncio import CancelledError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.errors import TABLE
from api.generation import Delta
from api.spans import Asked, Deltas, Span, Tell
from api.version import version
from protocol.errors import DraftPoolError
from protocol.request import FinishReason, GenerateRequest, TokenRun

EXPORT_S = 5.0
MAX_NAME = 100  # characters of a model's name, which may be any text
W3C = TraceContextTextMapPropagator()

Attributes = dict[str, Any]


def exporting(endpoint: str | None, instance: str) -> OtlpSpans:
    """endpoint: the collector's URL; None: as OpenTelemetry's variables say, headers and sampling too in any case."""
    url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_S)
    named = {"service.version": version(), "service.instance.id": instance}
    if "OTEL_SERVICE_NAME" not in os.environ:
        named["service.name"] = "draftpool"
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtlpSpans(provider)


class OtlpSpans:
    """provider: where spans go; this object closes it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("draftpool", version())

    def begin(self, asked: Asked, carrier: Mapping[str, str]) -> Span:
        model = asked.model[:MAX_NAME]
        attributes: Attributes = {
            "gen_ai.operation.name": asked.operation,
            "gen_ai.provider.name": "draftpool",
            "gen_ai.request.model": model,
            "gen_ai.request.stream": asked.streams,
        }
        name = f"{asked.operation} {model}"
        span = self._tracer.start_span(name, W3C.extract(carrier), SpanKind.SERVER, attributes)
        return RequestSpan(span, asked.streams)

    @contextmanager
    def answering(self, model: str, request: GenerateRequest) -> Iterator[Tell]:
        context = W3C.extract({"traceparent": request.traceparent})
        attributes: Attributes = {"gen_ai.request.model": model, "gen_ai.request.id": request.request_id}
        began = time.time_ns()
        span = self._tracer.start_span(f"target {model}", context, SpanKind.SERVER, attributes, start_time=began)

        def tell(answer: TokenRun | DraftPoolError) -> None:
            if isinstance(answer, DraftPoolError):
                _failed(span, answer)
            else:
                _tell_run(span, answer, began)

        try:
            yield tell
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            span.end()

    def close(self) -> None:
        self._provider.shutdown()


class RequestSpan:
    def __init__(self, span: trace.Span, streams: bool) -> None:
        self._span, self._streams = span, streams
        self._began = time.perf_counter()

    def carried(self, request: GenerateRequest) -> GenerateRequest:
        carrier: dict[str, str] = {}
        W3C.inject(carrier, trace.set_span_in_context(self._span))
        return replace(request, traceparent=carrier.get("traceparent", ""))

    async def follow(self, deltas: Deltas, answer_id: str, requests: Sequence[GenerateRequest]) -> Deltas:
        self._span.set_attributes(_asked(requests) | {"gen_ai.response.id": answer_id})
        last: dict[int, Delta] = {}
        try:
            async with aclosing(deltas):
                async for index, delta in deltas:
                    if not last and self._streams:
                        first_s = time.perf_counter() - self._began
                        self._span.set_attribute("gen_ai.response.time_to_first_chunk", first_s)
                    last[index] = delta
                    yield index, delta
        except BaseException as error:
            _failed(self._span, error)
            raise
        finally:
            self._span.set_attributes(_answered(requests, last))
            self._span.end()

    def fail(self, error: BaseException) -> None:
        if self._span.is_recording():
            _failed(self._span, error)
            self._span.end()


def _asked(requests: Sequence[GenerateRequest]) -> Attributes:
    """Of the first choice; the others differ in their seeds."""
    first = requests[0]
    attributes: Attributes = {
        "gen_ai.request.choice.count": len(requests),
        "gen_ai.request.max_tokens": first.stop.max_tokens,
        "gen_ai.request.temperature": first.sampling.temperature,
        "gen_ai.request.top_p": first.sampling.top_p,
        "gen_ai.request.top_k": first.sampling.top_k,
        "gen_ai.request.seed": first.sampling.seed & ((1 << 63) - 1),  # attributes have 63 bits
        "gen_ai.request.frequency_penalty": first.rules.frequency_penalty,
        "gen_ai.request.presence_penalty": first.rules.presence_penalty,
    }
    return attributes


def _answered(requests: Sequence[GenerateRequest], last: Mapping[int, Delta]) -> Attributes:
    begun = [(request.prompt_ids, last[index].num_cached) for index, request in enumerate(requests) if index in last]
    cached = dict(sorted(begun, key=lambda one: one[1], reverse=True))  # by prompt, of the choice that had to read it
    return {
        "gen_ai.usage.input_tokens": sum(map(len, cached)),
        "gen_ai.usage.cache_read.input_tokens": sum(cached.values()),
        "gen_ai.usage.output_tokens": sum(delta.num_tokens for delta in last.values()),
        "gen_ai.response.finish_reasons": [
            str(last[index].finish_reason or "error") if index in last else "error" for index in range(len(requests))
        ],
    }


def _tell_run(span: trace.Span, run: TokenRun, began: int) -> None:
    """began: when the span did, in nanoseconds."""
    span.set_attributes(
        {
            "gen_ai.usage.output_tokens": len(run.token_ids),
            "gen_ai.usage.cache_read.input_tokens": run.num_cached,
            "gen_ai.response.finish_reasons": [str(run.finish_reason)],
        }
    )
    if run.finish_reason in (FinishReason.ERROR, FinishReason.UNDEFINED, FinishReason.CLOSED):
        span.set_status(Status(StatusCode.ERROR))
    if (stats := run.stats) is None:
        return
    times = stats.times
    span.add_event("admitted", timestamp=began + round(1e9 * times.queued_s))
    span.add_event("first token", timestamp=began + round(1e9 * (times.queued_s + times.prefill_s)))
    span.set_attributes(
        {
            "gen_ai.latency.time_in_queue": times.queued_s,
            "gen_ai.latency.time_in_model_prefill": times.prefill_s,
            "gen_ai.latency.time_in_model_decode": times.decode_s,
            "draftpool.time_in_drafts": times.draft_s,
            "draftpool.rounds": stats.rounds,
            "draftpool.drafted_tokens": stats.drafted,
            "draftpool.accepted_tokens": stats.accepted,
        }
    )


def _failed(span: trace.Span, error: BaseException) -> None:
    """With the kind of error and nothing of its text. A caller who leaves cancels what is done for them."""
    row = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), None)
    kind = "cancelled" if isinstance(error, CancelledError | GeneratorExit) else type(error).__name__
    span.set_attribute("error.type", (row and row.code) or kind)
    span.set_status(Status(StatusCode.ERROR))
