"""What /metrics counts, over a real engine that drafts and over a scripted backend, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.backend import ModelCard
from api.meter import Meter
from protocol.errors import QueueFull
from protocol.request import FinishReason, GenerateRequest
from tests.api.api_client import Client, error_of, events
from tests.api.api_twins import (
    EngineBackend,
    ScriptedBackend,
    card,
    make_drafting_engine,
    runs_of,
    tiny_tokenizer,
)
from tests.api.scrape import Scrape, scrape_of
from tests.bench.http_server import http_server
from tests.deployments.harness import wait_until

ASKED = {"model": "tiny", "prompt": "import os", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
NUM_PROMPT = len(tiny_tokenizer().encode("import os"))
SPEC = "spec_decode_num_"


@pytest.fixture(scope="module")
def backend_that_drafts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBackend]:
    engine, worker = make_drafting_engine(tmp_path_factory.mktemp("tiny"))
    yield EngineBackend(engine, card(max_model_len=engine.max_length), worker)
    engine.stop()


@pytest.fixture
def real(backend_that_drafts: EngineBackend) -> Iterator[httpx.Client]:
    """A new application over the engine, on a real socket."""
    with http_server(backend_that_drafts) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def scrape(client: httpx.Client) -> Scrape:
    return scrape_of(client.get("/metrics"))


def settled(client: httpx.Client, **ended: int) -> Scrape:
    """The counts as soon as so many completions have ended."""
    wait_until(lambda: scrape(client).by("draftpool_request_success_total", "finished_reason") == ended, timeout=20)
    return scrape(client)


def test_whole_and_streamed_requests_are_counted_with_their_tokens_and_times(real: httpx.Client) -> None:
    began = time.monotonic()
    for _ in range(2):
        assert real.post("/v1/completions", json=ASKED).json()["usage"]["completion_tokens"] == 12
    chunks = events(real.post("/v1/completions", json=ASKED | {"stream": True, "max_tokens": 20}))
    found, took = settled(real, length=3), time.monotonic() - began
    assert found.value("draftpool_prompt_tokens_total", model="tiny") == 3 * NUM_PROMPT
    assert found.value("draftpool_generation_tokens_total", model="tiny") == 12 + 12 + 20
    assert found.value("draftpool_e2e_request_latency_seconds_count") == 3
    assert found.value("draftpool_time_to_first_token_seconds_count") == 1
    assert found.value("draftpool_inter_token_latency_seconds_count") == len(chunks) - 1
    assert found.value("draftpool_request_time_per_output_token_seconds_count") == 1
    first, between = (
        found.value(f"draftpool_{name}_seconds_sum") for name in ("time_to_first_token", "inter_token_latency")
    )
    assert 0 < first < first + between < found.value("draftpool_e2e_request_latency_seconds_sum") < took
    assert found.value("draftpool_open_requests") == 0
    assert found.value("draftpool_http_responses_total", route="/v1/completions", status="200") == 3


def test_each_prompt_of_a_call_is_a_request(real: httpx.Client) -> None:
    real.post("/v1/completions", json=ASKED | {"prompt": ["a", "b", "c"], "max_tokens": 2})
    found = settled(real, length=3)
    assert found.value("draftpool_generation_tokens_total") == 6


def test_a_client_that_leaves_is_an_abort_with_the_tokens_that_it_got(
    real: httpx.Client, backend_that_drafts: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = backend_that_drafts.engine._stepper
    step, steps = stepper.step, threading.Semaphore(3)

    def step_if_it_may() -> Any:
        assert steps.acquire(timeout=30)
        return step()

    monkeypatch.setattr(stepper, "step", step_if_it_may)
    with real.stream("POST", "/v1/completions", json=ASKED | {"stream": True, "max_tokens": 240}) as response:
        lines = response.iter_lines()
        next(lines)
        during = scrape(real)
    found = settled(real, abort=1)
    steps.release(100)
    assert during.value("draftpool_open_requests", model="tiny") == 1
    assert during.value("draftpool_num_requests_running", model="tiny") == 1
    assert during.value("draftpool_kv_cache_usage_perc", model="tiny") > 0
    assert during.value("draftpool_pool_sequences") == 1
    assert 0 < found.value("draftpool_generation_tokens_total") < 240
    assert found.value("draftpool_prompt_tokens_total") == NUM_PROMPT
    assert found.value("draftpool_open_requests", model="tiny") == 0
    assert found.value("draftpool_e2e_request_latency_seconds_count") == 0, "it has no end"
    wait_until(lambda: not backend_that_drafts.engine.stats().num_running)
    assert scrape(real).value("draftpool_num_requests_running") == 0


async def test_refused_requests_are_counted_by_status_and_as_no_request(backend_that_drafts: Any) -> None:
    async with Client(backend_that_drafts) as client:
        error_of(await client.complete(model="huge"), 404)
        error_of(await client.complete(top_p=7), 400)
        error_of(await client.post("/v1/chat/completions", json={}), 400)
        error_of(await client.send_raw("/v1/completions", b" " * (5 << 20)), 413)
        for path in ("/etc/passwd", "/v1/none"):
            error_of(await client.get(path), 404)
        found = scrape_of(await client.get("/metrics"))
    answers = found.families["draftpool_http_responses"].samples
    assert {(one.labels["route"], one.labels["status"]): one.value for one in answers} == {
        ("/v1/completions", "404"): 1,
        ("/v1/completions", "400"): 1,
        ("/v1/chat/completions", "400"): 1,
        ("other", "413"): 1,  # refused before there is a route
        ("other", "404"): 2,
    }
    assert found.families["draftpool_request_success"].samples == []
    assert found.value("draftpool_prompt_tokens_total") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_429_and_no_request_and_a_fault_is_an_error(stream: bool) -> None:
    async with Client(ScriptedBackend(lambda request: [QueueFull("9 requests are queued")])) as client:
        error_of(await client.complete(stream=stream), 429)
        found = scrape_of(await client.get("/metrics"))
        assert found.value("draftpool_http_responses_total", status="429") == 1
        assert found.by("draftpool_request_success_total", "finished_reason") == {}
        assert found.value("draftpool_open_requests", model="tiny") == 0
    broken: Any = lambda request: [*runs_of(request, [70, 71], [72])[:1], RuntimeError("secret")]  # noqa: E731
    async with Client(ScriptedBackend(broken)) as client:
        await client.complete(stream=stream)
        found = scrape_of(await client.get("/metrics"))
        assert found.by("draftpool_request_success_total", "finished_reason") == {"error": 1}


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR, FinishReason.UNDEFINED])
async def test_an_answer_that_the_engine_gave_up_is_an_error(reason: FinishReason) -> None:
    async with Client(ScriptedBackend(lambda request: runs_of(request, [70], [71], reason=reason))) as client:
        await client.complete(stream=True)
        found = scrape_of(await client.get("/metrics"))
    assert found.by("draftpool_request_success_total", "finished_reason") == {"error": 1}


async def test_a_stop_string_is_a_stop_and_only_what_was_answered_is_counted() -> None:
    tokens = tiny_tokenizer().encode("one two three")
    backend = ScriptedBackend(lambda request: [*runs_of(request, tokens, tokens)[:1], asyncio.Event()])
    async with Client(backend) as client:
        usage = (await client.complete(stop=[" tw"])).json()["usage"]
        found = scrape_of(await client.get("/metrics"))
    assert found.by("draftpool_request_success_total", "finished_reason") == {"stop": 1}
    assert found.value("draftpool_generation_tokens_total") == usage["completion_tokens"] < len(tokens)


class Ticks:
    """A clock that a script moves."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


async def test_times_are_those_between_request_and_pieces() -> None:
    clock = Ticks()

    def script(request: GenerateRequest) -> Iterator[Any]:
        for wait, run in zip((3.0, 0.5, 0.25), runs_of(request, [70], [71, 72, 73], [74, 75]), strict=True):
            clock.now += wait
            yield run

    class Thinking(ScriptedBackend):
        """Takes a second before it knows the model."""

        async def card(self, model: str) -> ModelCard | None:
            clock.now += 1.0
            return await super().card(model)

    async with Client(Thinking(script), meter=Meter(clock=clock)) as client:  # type: ignore[arg-type]
        await client.complete(stream=True)
        found = scrape_of(await client.get("/metrics"))
        assert found.value("draftpool_time_to_first_token_seconds_sum") == 4.0
        assert found.value("draftpool_inter_token_latency_seconds_sum") == 0.75
        assert found.value("draftpool_inter_token_latency_seconds_count") == 2
        assert found.value("draftpool_request_time_per_output_token_seconds_sum") == 0.75 / 5
        assert found.value("draftpool_e2e_request_latency_seconds_sum") == 4.75
        assert found.value("draftpool_time_to_first_token_seconds_bucket", le="2.5") == 0
        assert found.value("draftpool_time_to_first_token_seconds_bucket", le="5.0") == 1
        await client.complete()
        found = scrape_of(await client.get("/metrics"))
    assert found.value("draftpool_e2e_request_latency_seconds_sum") == 9.5
    assert found.value("draftpool_time_to_first_token_seconds_count") == 1, "a whole answer has no first piece"


def test_speculation_is_counted_as_its_answers_tell_and_as_the_engine_counts(
    real: httpx.Client, backend_that_drafts: EngineBackend
) -> None:
    before = scrape(real)
    bodies = [real.post("/v1/completions", json=ASKED | {"prompt": text, "max_tokens": 40}).json() for text in "abcd"]
    stats = [body["metrics"]["speculative_decoding"] for body in bodies]
    after, engine = scrape(real), backend_that_drafts.engine.stats()

    def added(name: str, **labels: str) -> float:
        return after.value(f"draftpool_{name}_total", **labels) - before.value(f"draftpool_{name}_total", **labels)

    assert added(f"{SPEC}draft_tokens") == sum(one["num_draft_tokens"] for one in stats) > 0
    assert added(f"{SPEC}accepted_tokens") == sum(one["num_accepted_draft_tokens"] for one in stats) > 0
    for position in range(3):
        beyond = sum(sum(one["acceptance_histogram"][position + 1 :]) for one in stats)
        assert added(f"{SPEC}accepted_tokens_per_pos", position=str(position)) == beyond
    assert after.value(f"draftpool_{SPEC}drafts_total") == engine.num_drafts > 0
    assert after.value("draftpool_hit_drafts_total") == 0
    assert added("rounds") == sum(one["num_spec_steps"] for one in stats)
    assert after.value("draftpool_committed_tokens_total") == engine.num_committed
    assert after.value("draftpool_kv_cache_usage_perc", model="tiny", replica="target-0") == 0
    seconds = after.by("draftpool_round_seconds_total", "part")
    assert seconds["verify"] == pytest.approx(engine.verify_ms / 1e3)
    assert seconds["draft"] == pytest.approx(engine.draft_ms / 1e3)
    assert added("pool_drafted_tokens", replica="pool-0") >= added(f"{SPEC}draft_tokens")
    assert added("pool_rows") >= added("pool_passes") > 0
    assert 0 < added("pool_pass_seconds") < 60
    assert added("pool_read_tokens") + added("pool_prefix_hit_tokens") >= NUM_PROMPT
    assert after.value("draftpool_pool_sequences") == 0
    assert (after.value("draftpool_replicas", model="tiny"), after.value("draftpool_pool_replicas")) == (1, 1)


def test_vllms_bench_reads_the_acceptance(real: httpx.Client, backend_that_drafts: EngineBackend) -> None:
    """It sums the last words of lines whose name ends in _total, whatever their labels, by a part of that name."""
    real.post("/v1/completions", json=ASKED)
    lines = [line for line in real.get("/metrics").text.splitlines() if line.startswith("vllm:spec_decode")]
    rows: Counter[str] = Counter()
    positions: dict[int, float] = {}
    for line in lines:
        number = float(line.split()[-1])
        known = ("num_drafts", "num_draft_tokens", "num_accepted_tokens_per_pos", "num_accepted_tokens")
        assert line.split("{")[0].endswith("_total")
        name = next(each for each in known if each in line)
        rows[name] += int(number)
        if name.endswith("per_pos"):
            positions[int(line.split('position="')[1].split('"')[0])] = number
    engine = backend_that_drafts.engine.stats()
    assert rows["num_draft_tokens"] == engine.num_proposed
    assert rows["num_accepted_tokens"] == rows["num_accepted_tokens_per_pos"] == engine.num_accepted
    assert rows["num_drafts"] == engine.num_drafts
    assert positions == dict(enumerate(engine.num_accepted_by_position))
    assert sorted(positions) == [0, 1, 2]


VLLMS = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:num_preemptions": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:spec_decode_num_drafts": "counter",
    "vllm:spec_decode_num_draft_tokens": "counter",
    "vllm:spec_decode_num_accepted_tokens": "counter",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "counter",
}


def test_vllms_names_have_its_types_and_labels_and_our_numbers(real: httpx.Client) -> None:
    real.post("/v1/completions", json=ASKED | {"stream": True})
    found = settled(real, length=1)
    assert {name: family.type for name, family in found.families.items() if name.startswith("vllm:")} == VLLMS
    for name in VLLMS:
        ours = found.families[name.replace("vllm:", "draftpool_")].samples
        theirs = found.families[name].samples
        assert [sample.value for sample in theirs] == [sample.value for sample in ours]
        assert all({"model_name", "engine"} <= sample.labels.keys() for sample in theirs)
        assert not any({"model", "replica"} & sample.labels.keys() for sample in theirs)
    (ended,) = found.families["vllm:request_success"].samples
    assert ended.labels == {"model_name": "tiny", "engine": "0", "finished_reason": "length"}
    assert not any(sample.name.endswith("_created") for sample in found.samples)
