"""Spans, taken by a collector on loopback that speaks OTLP over HTTP: of the door and of the target behind it."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from api import rpc, spans
from api.spans import NO_SPANS, Spans, open_spans
from deployments.target import TargetReplica
from link.token_stream import TokenStreams
from protocol.errors import ConfigError, QueueFull
from protocol.pb import inference_pb2 as pb
from protocol.request import FinishReason, GenerateRequest, TokenRun
from tests.api.api_client import CHAT, COMPLETION, TEXT, Client, Context, error_of, events
from tests.api.api_twins import EngineBackend, ScriptedBackend, card, make_drafting_engine, make_engine, says

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Collector:
    """Keeps the spans that come. status: what it answers."""

    def __init__(self) -> None:
        self.status, self.spans, self.resources = 200, list[Span](), list[dict[str, str]]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.take(self.path, body)
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({one.key: one.value.string_value for one in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def named(self, name: str) -> Span:
        (span,) = self.spans_of(name)
        return span

    def spans_of(self, name: str) -> list[Span]:
        """In the order of their beginnings."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_time_unix_nano)


@contextmanager
def collecting() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@contextmanager
def exported(collector: Collector) -> Iterator[Spans]:
    """Everything has reached the collector behind the block."""
    opened = open_spans(collector.url, {}, "replica-1")
    try:
        yield opened
    finally:
        opened.close()


def attributes(span: Span) -> dict[str, Any]:
    found = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return found


class TracedBackend(EngineBackend):
    """Whose target replica makes spans as a served one does."""

    watching: Spans = NO_SPANS

    async def runs(self, request: GenerateRequest) -> Any:
        watched = {"_spans": self.watching, "_config": SimpleNamespace(name="tiny")}
        replica: Any = SimpleNamespace(_engine=self.engine, _streams=TokenStreams(), **watched)
        answer = await TargetReplica.generate(replica, request)
        if isinstance(answer, Exception):
            raise answer
        yield answer


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedBackend]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    yield TracedBackend(engine, card(max_model_len=engine.max_length))
    engine.stop()


@pytest.fixture
def drafting(tmp_path: Path) -> Iterator[TracedBackend]:
    engine, worker = make_drafting_engine(tmp_path)
    yield TracedBackend(engine, card(max_model_len=engine.max_length), worker)
    engine.stop()


@pytest.mark.parametrize("streams", [False, True])
async def test_door_and_target_are_two_spans_of_the_callers_trace(
    collector: Collector, real: TracedBackend, streams: bool
) -> None:
    with exported(collector) as real.watching:
        async with Client(real, spans=real.watching) as client:
            asked = CHAT | {"max_tokens": 4, "temperature": 0, "seed": 7, "ignore_eos": True, "stream": streams}
            response = await client.post("/v1/chat/completions", json=asked, headers={"traceparent": TRACEPARENT})
    door, target = collector.named("chat tiny"), collector.named("target tiny")
    assert door.trace_id.hex() == target.trace_id.hex() == TRACE
    assert (door.parent_span_id.hex(), target.parent_span_id) == (PARENT, door.span_id)
    assert door.kind == target.kind == Span.SPAN_KIND_SERVER
    told = attributes(door)
    answer_id = events(response)[0]["id"] if streams else response.json()["id"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "draftpool",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": streams,
        "gen_ai.response.id": answer_id,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.output_tokens": 4,
    }
    assert expected.items() <= told.items()
    assert told["gen_ai.usage.input_tokens"] > 0
    assert ("gen_ai.response.time_to_first_chunk" in told) == streams
    assert collector.resources[0]["service.name"] == "draftpool"
    assert collector.resources[0]["service.instance.id"] == "replica-1"


async def test_the_targets_span_tells_queue_prefill_and_decode(collector: Collector, real: TracedBackend) -> None:
    with exported(collector) as real.watching:
        async with Client(real, spans=real.watching) as client:
            await client.complete(max_tokens=8, ignore_eos=True)
    target = collector.named("target tiny")
    told = attributes(target)
    parts = [told[f"gen_ai.latency.time_in_{part}"] for part in ("queue", "model_prefill", "model_decode")]
    assert all(part >= 0 for part in parts)
    assert parts[1] > 0
    assert parts[2] > 0
    assert sum(parts) <= (target.end_time_unix_nano - target.start_time_unix_nano) / 1e9
    admitted, first = target.events
    assert (admitted.name, first.name) == ("admitted", "first token")
    times = [target.start_time_unix_nano, admitted.time_unix_nano, first.time_unix_nano, target.end_time_unix_nano]
    assert times == sorted(times)
    assert told["gen_ai.usage.output_tokens"] == 8


async def test_the_targets_span_tells_what_drafts_took_of_its_rounds_and_of_no_others(
    collector: Collector, drafting: TracedBackend
) -> None:
    with exported(collector) as drafting.watching:
        async with Client(drafting, spans=drafting.watching) as client:
            await client.complete(max_tokens=20, ignore_eos=True)
            before = len(drafting.engine.last_rounds())
            await client.complete(max_tokens=9, ignore_eos=True)
    rounds = drafting.engine.last_rounds()
    for span, own in zip(collector.spans_of("target tiny"), (rounds[:before], rounds[before:]), strict=True):
        took_s = sum(record.drafted_s - record.planned_s for record in own if record.rows)
        assert attributes(span)["draftpool.time_in_drafts"] == pytest.approx(took_s)
        assert 0 < took_s < attributes(span)["gen_ai.latency.time_in_model_decode"]


async def test_nothing_of_a_prompt_or_an_answer_is_in_a_span(collector: Collector) -> None:
    with exported(collector) as made:
        async with Client(ScriptedBackend(says(TEXT)), spans=made) as client:
            await client.complete(prompt="geheimnis", stop=["geheim"], user="geheim")
            error_of(await client.complete(prompt="geheimnis", temperature=-1), 400)
    raw = b"".join(span.SerializeToString() for span in collector.spans)
    assert b"geheim" not in raw
    assert b"def add" not in raw


@pytest.mark.parametrize(
    ("script", "changes", "kind"),
    [
        ([QueueFull("full")], {}, "rate_limit_exceeded"),
        ([ZeroDivisionError("x")], {}, "ZeroDivisionError"),
        ([], {"model": "huge"}, "model_not_found"),
    ],
    ids=["refused", "fault", "unknown"],
)
async def test_a_request_that_fails_says_by_what(
    collector: Collector, script: list[Any], changes: dict[str, Any], kind: str
) -> None:
    with exported(collector) as made:
        async with Client(ScriptedBackend(lambda request: script), spans=made) as client:
            await client.complete(**changes)
    (span,) = collector.spans
    assert attributes(span)["error.type"] == kind
    assert span.status.code == Status.STATUS_CODE_ERROR


async def test_a_call_over_grpc_is_a_span_too(collector: Collector) -> None:
    backend = ScriptedBackend(says(TEXT))
    with exported(collector) as made:
        message, context = pb.GenerateRequest(model="tiny", text="import"), Context(traceparent=TRACEPARENT)
        *_, last = [each async for each in rpc.generate(backend, message, context, None, made)]
    span = collector.named("text_completion tiny")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span)["gen_ai.response.id"] == last.request_id
    assert backend.requests[0].traceparent.split("-")[1:3] == [TRACE, span.span_id.hex()]


@pytest.mark.parametrize("given", ["", "geheim", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
async def test_a_context_that_is_none_begins_a_trace(collector: Collector, given: str) -> None:
    with exported(collector) as made:
        async with Client(ScriptedBackend(says(TEXT)), spans=made) as client:
            await client.post("/v1/completions", json=COMPLETION, headers={"traceparent": given})
    (span,) = collector.spans
    assert span.trace_id.hex() != TRACE
    assert not span.parent_span_id


async def test_a_collector_that_is_down_fails_no_request() -> None:
    opened = open_spans("http://127.0.0.1:9", {}, "replica-1")
    async with Client(ScriptedBackend(says(TEXT)), spans=opened) as client:
        assert (await client.complete()).status_code == 200
    await asyncio.to_thread(opened.close)


def test_without_an_endpoint_there_are_no_spans_and_nothing_is_imported() -> None:
    assert open_spans(None, {}, "a") is NO_SPANS
    request: Any = object()
    assert NO_SPANS.begin(request, {}).carried(request) is request
    code = "import sys, api.http, api.spans; api.spans.open_spans(None, {}, 'a')\n"
    code += "ours = ('opentelemetry.sdk', 'opentelemetry.exporter', 'api.otlp')  # FastAPI itself imports the rest\n"
    code += "assert not [name for name in sys.modules if name.startswith(ours)]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(spans.__file__).parents[1])


def test_asking_for_traces_without_the_packages_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "api.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    for endpoint, environment in (("http://x:4318", {}), (None, {spans.ENDPOINT: "http://x:4318"})):
        with pytest.raises(ConfigError, match=r"pip install 'draftpool\[otel\]'"):
            open_spans(endpoint, environment, "a")


def test_a_run_that_broke_is_an_error_of_the_targets_span(collector: Collector) -> None:
    request: Any = SimpleNamespace(request_id="r", traceparent=TRACEPARENT)
    with exported(collector) as made, made.answering("tiny", request) as tell:
        tell(TokenRun("r", 0, (), FinishReason.ERROR))
    assert collector.named("target tiny").status.code == Status.STATUS_CODE_ERROR
