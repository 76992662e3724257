"""Load: schedules are values, times count from when a request was due, and every failure has its kind."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from bench import load
from bench.arrivals import Arrival, closed_loop, parse_targets, poisson
from bench.load_client import Answer, Ask, Client, Outcome, drive
from bench.load_report import Limits, Percentiles, meets, summarize
from protocol.errors import ConfigError, QueueFull
from protocol.request import GenerateRequest
from targets.engine import Engine
from tests.api.api_twins import EngineBackend, ScriptedBackend, card, make_engine, runs_of, says
from tests.bench.http_server import http_server

BOTH = {"large": 3.0, "small": 1.0}
LIMITS = Limits(ttft_ms=500, tpot_ms=50)
PROMPTS = ["import os", "def add(a, b):", "grüße"]
REFUSING_PORT = 1
STEP_S = 0.2  # far beyond what a busy machine adds


# --- schedules ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    def made(seed: int) -> list[Arrival]:
        return poisson(BOTH, 5, rate=20, duration_s=10, seed=seed)

    assert made(1) == made(1) != made(2)


def test_gaps_are_exponential_and_models_follow_their_weights() -> None:
    schedule = poisson(BOTH, 7, rate=50, duration_s=200, seed=3)
    times = [arrival.due_s or 0.0 for arrival in schedule]
    gaps = [late - early for early, late in pairwise(times)]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 200
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert mean(gap > 1 / 50 for gap in gaps) == pytest.approx(0.368, abs=0.02)
    assert Counter(arrival.model for arrival in schedule)["large"] / len(schedule) == pytest.approx(0.75, abs=0.02)
    assert [arrival.prompt for arrival in schedule[:9]] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_a_higher_rate_sends_the_same_requests_closer_together() -> None:
    slow, fast = (poisson(BOTH, 3, rate=rate, duration_s=100 / rate, seed=0) for rate in (10, 40))
    assert [arrival.model for arrival in slow] == [arrival.model for arrival in fast]
    assert [arrival.due_s for arrival in fast] == pytest.approx([(arrival.due_s or 0) / 4 for arrival in slow])


def test_a_closed_loop_has_its_number_of_requests_and_no_times() -> None:
    schedule = closed_loop(BOTH, 2, num_requests=5, seed=0)
    assert [(arrival.prompt, arrival.due_s) for arrival in schedule] == [(i % 2, None) for i in range(5)]


def test_targets_carry_weights() -> None:
    assert parse_targets("large, small:2.5") == {"large": 1.0, "small": 2.5}


@pytest.mark.parametrize("text", ["", "large,", "large:0", "large:-1", "large:x", ":3", "a,a", "a:inf", "a:nan"])
def test_targets_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--targets"):
        parse_targets(text)


# --- what outcomes come to ------------------------------------------------------------------------------------------


def outcome(
    *, due: float = 0.0, first: float | None = 0.1, end: float = 1.1, tokens: int = 11, **other: object
) -> Outcome:
    fields: dict[str, object] = {"sent_s": due, "error": None} | other
    return Outcome(Arrival("large", 0), due, first_s=first, end_s=end, num_tokens=tokens, **fields)  # type: ignore[arg-type]


def test_latencies_and_rates_follow_their_definitions() -> None:
    row = summarize(
        [
            outcome(num_rounds=4, num_accepted=6),
            outcome(due=1.0, first=1.3, end=2.0, tokens=8, num_rounds=2, num_accepted=6),
            outcome(due=1.0, first=None, end=1.5, tokens=3, error="http_429", sent_s=1.25),
        ],
        LIMITS,
    )
    assert (row.num_requests, row.num_completed, row.errors, row.span_s) == (3, 2, {"http_429": 1}, 2.0)
    assert (row.requests_per_second, row.output_tokens_per_second) == (1.0, 9.5)
    assert row.ttft_ms == Percentiles(mean=200, p50=200, p90=280, p99=298)
    assert row.tpot_ms == Percentiles(mean=100, p50=100, p90=100, p99=100)
    assert row.e2e_ms is not None
    assert row.e2e_ms.mean == pytest.approx(1050)
    assert (row.late_ms, row.mean_acceptance_length) == (250, 3.0)
    assert row.goodput == 0.0


@pytest.mark.parametrize(
    ("first", "end", "tokens", "good"),
    [(0.5, 1.0, 11, True), (0.51, 1.0, 11, False), (0.5, 1.01, 11, False), (0.4, 0.4, 1, True), (None, 0.4, 11, False)],
)
def test_goodput_counts_requests_that_keep_both_limits(
    first: float | None, end: float, tokens: int, good: bool
) -> None:
    one = outcome(first=first, end=end, tokens=tokens)
    assert meets(one, LIMITS) is good
    if first is not None:
        assert summarize([one, one], LIMITS).goodput == pytest.approx(2 / end if good else 0, abs=1e-3)


def test_whole_answers_have_no_goodput_and_nothing_at_all_has_no_rates() -> None:
    row = summarize([outcome(first=None)], LIMITS)
    assert (row.goodput, row.ttft_ms, row.tpot_ms) == (None, None, None)
    assert row.output_tokens_per_second == 10
    row = summarize([], LIMITS)
    assert (row.num_requests, row.requests_per_second, row.e2e_ms) == (0, 0.0, None)


# --- sending --------------------------------------------------------------------------------------------------------


async def test_no_more_are_under_way_than_allowed_and_a_wait_for_a_place_is_latency() -> None:
    under_way, most = 0, 0

    async def send(arrival: Arrival) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(STEP_S)
        under_way -= 1
        return Answer(num_tokens=1)

    due = await drive([Arrival("large", number, 0.0) for number in range(6)], send, max_in_flight=2)
    assert most == 2
    assert [round((o.end_s - o.due_s) / STEP_S) for o in due] == [1, 1, 2, 2, 3, 3]
    free = await drive([Arrival("large", number) for number in range(6)], send, max_in_flight=2)
    assert [round((o.end_s - o.due_s) / STEP_S) for o in free] == [1] * 6
    assert summarize(due, LIMITS).late_ms >= 2e3 * STEP_S > summarize(free, LIMITS).late_ms


def test_a_request_says_all_that_settles_its_answer() -> None:
    asked = Ask(12, temperature=0.8, seed=5)
    assert asked.body("tiny", "import", 3) == {
        "model": "tiny",
        "prompt": "import",
        "max_tokens": 12,
        "temperature": 0.8,
        "seed": 8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_request_leaves_when_it_is_due() -> None:
    async def send(arrival: Arrival) -> Answer:
        return Answer(num_tokens=1)

    outcomes = await drive([Arrival("large", 0, 0.4), Arrival("large", 0, 0.02)], send, max_in_flight=8)
    assert all(o.due_s <= o.sent_s < o.due_s + 0.3 for o in outcomes)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = make_engine(tmp_path_factory.mktemp("tiny"), max_batch=4, max_queue=4)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with http_server(EngineBackend(engine, card(max_model_len=engine.max_length))) as url:
        yield url


async def send_all(
    url: str, ask: Ask, schedule: Sequence[Arrival], places: int = 4, timeout_s: float = 5
) -> list[Outcome]:
    async with Client(url, PROMPTS, ask, connections=places, timeout_s=timeout_s) as client:
        return await drive(schedule, client.send, places)


async def test_streams_and_whole_answers_of_a_real_engine_are_the_same_text(url: str) -> None:
    schedule = closed_loop({"tiny": 1.0}, len(PROMPTS), num_requests=9, seed=0)
    streamed = await send_all(url, Ask(12, temperature=0.8, seed=5), schedule)
    whole = await send_all(url, Ask(12, temperature=0.8, seed=5, stream=False), schedule)
    assert [o.text for o in streamed] == [o.text for o in whole]
    assert len({o.text for o in whole}) == len(PROMPTS)
    assert all(o.error is None and o.num_tokens == 12 for o in streamed + whole)
    assert all(o.first_s is not None and o.sent_s < o.first_s < o.end_s for o in streamed)
    assert all(o.first_s is None for o in whole)


async def test_what_the_server_tells_of_speculation_is_summed_up() -> None:
    with http_server(ScriptedBackend(says("def add(a, b)"))) as url:
        (one,) = await send_all(url, Ask(8, ignore_eos=False), [Arrival("tiny", 0)])
    assert one.num_accepted == 3
    assert summarize([one], LIMITS).mean_acceptance_length == round(1 + 3 / one.num_rounds, 3)


async def test_a_refusal_is_counted_by_its_status_and_an_error_in_a_stream_as_an_event() -> None:
    def fails(request: GenerateRequest) -> list[object]:
        return [runs_of(request, [65], [66])[0], RuntimeError("planted")]

    scripts: dict[str, Callable[..., list[object]]] = {"http_429": lambda request: [QueueFull("full")], "event": fails}
    for kind, script in scripts.items():
        with http_server(ScriptedBackend(script)) as url:  # type: ignore[arg-type]
            (one,) = await send_all(url, Ask(8), [Arrival("tiny", 0)])
        assert one.error == kind
    assert one.first_s is not None, "a token came before the error"


async def test_a_silent_server_is_a_timeout_and_one_that_is_not_there_a_connection_error() -> None:
    backend = ScriptedBackend(lambda request: [asyncio.Event()])
    with http_server(backend) as url:
        (silent,) = await send_all(url, Ask(8), [Arrival("tiny", 0)], timeout_s=0.2)
    (absent,) = await send_all(f"http://127.0.0.1:{REFUSING_PORT}", Ask(8), [Arrival("tiny", 0)])
    assert (silent.error, absent.error) == ("timeout", "connection")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"content-length: 99\r\n\r\ndata: ", "cut"),
        (b"connection: close\r\n\r\n", "cut"),
        (b"connection: close\r\n\r\ndata: {not json}\n\n", "malformed"),
        (b'connection: close\r\n\r\ndata: {"id": 1}\n\n', "malformed"),
        (b"connection: close\r\n\r\ndata: [DONE]\n\n", "malformed"),
    ],
)
async def test_broken_answers_have_a_kind(reply: bytes, kind: str) -> None:
    with broken_server(b"HTTP/1.1 200 OK\r\n" + reply) as url:
        (one,) = await send_all(url, Ask(8), [Arrival("tiny", 0)])
    assert one.error == kind


@contextmanager
def broken_server(reply: bytes) -> Iterator[str]:
    """Says this to the first who connects, whatever is asked, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while b"prompt" not in connection.recv(1 << 16):
                pass
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join()
        listener.close()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    return path


def test_the_command_prints_a_report(url: str, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [f"--url={url}", "--targets=tiny", f"--prompts={prompts}", "--max-tokens=8", "--json"]
    assert load.main([*command, "--rate=40", "--duration=0.5", "--seed=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = poisson({"tiny": 1.0}, 3, rate=40, duration_s=0.5, seed=1)
    both = report["results"][load.ALL]
    assert both["num_completed"] == len(expected) > 5
    assert both == report["results"]["tiny"]
    assert {"p50", "p90", "p99"} <= set(both["ttft_ms"])
    assert (report["arrivals"], report["rate"], report["max_in_flight"]) == ("poisson", 40, 256)
    assert {"commit", "command", "cpu"} <= set(report["machine"])
    assert "import os" not in json.dumps(report)


def test_the_command_prints_a_table(url: str, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [f"--url={url}", "--targets=tiny", f"--prompts={prompts}", "--max-tokens=4", "--concurrency=2"]
    assert load.main([*command, "--num-requests=6", "--no-stream"]) == 0
    title, all_targets, tiny = capsys.readouterr().out.splitlines()
    assert "goodput(500/50)" in title
    assert all_targets.split()[:3] == ["all", "targets", "6/6"]
    assert tiny.split()[:2] == ["tiny", "6/6"]


def test_requests_that_fail_fail_the_command(prompts: Path) -> None:
    with http_server(ScriptedBackend(lambda request: [QueueFull("full")])) as url:
        assert load.main([f"--url={url}", "--targets=tiny", f"--prompts={prompts}", "--concurrency=1"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--targets=huge", "'huge' is not served at"),
        ("--targets=tiny:0", "--targets"),
        (f"--url=http://127.0.0.1:{REFUSING_PORT}", "draftpool serve"),
        ("--url=nonsense", "draftpool serve"),
        ("--prompts=absent.jsonl", "absent.jsonl"),
        ("--rate=0.001", "nothing arrives"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    url: str, prompts: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"--url={url}", "--targets=tiny", f"--prompts={prompts}", "--rate=10", "--duration=0.1"]
    assert load.main([*command, change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("wrong", ["--rate=0", "--rate=nan", "--ttft-ms=x", "--concurrency=0"])
def test_numbers_that_cannot_be_are_usage_errors(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load.main(["--targets=tiny", wrong])
    assert wrong.partition("=")[0] in capsys.readouterr().err
