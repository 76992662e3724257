"""What a client gives is the same over HTTP and gRPC, and for asyncio: the engine's own tokens, and the same errors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from api.text import decode
from draftpool import (
    Acceptance,
    InvalidRequest,
    Model,
    NotReady,
    QueueFull,
    Retries,
    ServerFault,
    Speculation,
    TimedOut,
    UnknownModel,
    Usage,
)
from protocol.request import GenerateRequest, SamplingParams, SequenceStats, StopRules, TokenRun
from targets.engine import Engine
from tests.api.api_twins import ScriptedBackend, make_engine, runs_of, tiny_tokenizer
from tests.client.conftest import Connect, Serve
from tests.client.servers import Servers

PROMPTS = ["import os", "grüße aus", "日本"]
MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": "grüße"}]
NO_RETRIES = Retries(most=0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


@pytest.fixture
def client(servers: Servers, connect: Connect) -> Any:
    return connect(servers, retries=NO_RETRIES)


@pytest.fixture(autouse=True)
def nothing_leaks(engine: Engine) -> Iterator[None]:
    yield
    wait_until_idle(engine)
    assert engine.stats().num_free_pages == engine.stats().num_pages


def wait_until_idle(engine: Engine) -> None:
    deadline = time.monotonic() + 5
    while engine.stats().num_running + engine.stats().num_waiting:
        assert time.monotonic() < deadline, "the engine still works"
        time.sleep(0.005)


def direct(engine: Engine, ids: list[int], max_tokens: int) -> list[int]:
    """The engine's own answer, without any API, at temperature 0.8 and seed 5."""
    done, tokens = threading.Event(), list[int]()

    def on_run(run: TokenRun) -> None:
        tokens.extend(run.token_ids)
        if run.finish_reason is not None:
            done.set()

    rules = StopRules(max_tokens, frozenset({tiny_tokenizer().eos_token_id}))
    engine.submit(GenerateRequest("direct", tuple(ids), SamplingParams(0.8, seed=5), rules), on_run)
    assert done.wait(30)
    return tokens


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_completion_is_what_the_engine_makes(engine: Engine, client: Any, prompt: str) -> None:
    ids = tiny_tokenizer().encode(prompt)
    expected = direct(engine, ids, 24)
    for how in (prompt, ids):
        made = client.complete("tiny", how, temperature=0.8, seed=5, max_tokens=24)
        assert list(made.token_ids) == expected
        assert made.text == decode(tiny_tokenizer(), expected)
        assert made.usage == Usage(len(ids), len(expected))
        assert (made.seed, made.acceptance) == (5, None)
        assert made.finish_reason == ("length" if len(expected) == 24 else "stop")
        assert made.request_id


@pytest.mark.parametrize("ask", ["complete", "chat"])
def test_the_deltas_of_a_stream_join_to_the_whole_answer(client: Any, ask: str) -> None:
    options = {"temperature": 0.8, "seed": 7, "max_tokens": 24, "ignore_eos": True}
    if ask == "complete":
        whole, stream = client.complete("tiny", "import", **options), client.stream("tiny", "import", **options)
    else:
        whole, stream = client.chat("tiny", MESSAGES, **options), client.stream_chat("tiny", MESSAGES, **options)
    deltas = list(stream)
    assert len(deltas) > 5
    assert "".join(delta.text for delta in deltas) == whole.text
    assert tuple(token for delta in deltas for token in delta.token_ids) == whole.token_ids
    *before, last = deltas
    assert {(delta.finish_reason, delta.usage, delta.seed) for delta in before} == {(None, None, None)}
    assert (last.finish_reason, last.usage, last.seed) == (whole.finish_reason, whole.usage, whole.seed)
    assert len({delta.request_id for delta in deltas}) == 1


def test_a_drawn_seed_repeats_the_text(client: Any) -> None:
    first = client.chat("tiny", MESSAGES, max_tokens=16)
    assert client.chat("tiny", MESSAGES, max_tokens=16, seed=first.seed).text == first.text


def test_a_negative_seed_is_the_same_seed_over_both(client: Any, servers: Servers) -> None:
    made = client.complete("tiny", "import", seed=-3, max_tokens=12, temperature=0.9)
    again = client.complete("tiny", "import", seed=2**64 - 3, max_tokens=12, temperature=0.9)
    assert made.token_ids == again.token_ids


def test_a_completion_has_16_tokens_and_a_chat_all_the_room_unless_the_caller_says_more(
    engine: Engine, client: Any
) -> None:
    assert client.complete("tiny", "import", ignore_eos=True).usage.completion_tokens == 16
    usage = client.chat("tiny", MESSAGES, ignore_eos=True).usage
    assert usage.total_tokens == engine.max_length


def test_a_stop_string_ends_the_text_before_itself(engine: Engine, client: Any) -> None:
    whole = decode(tiny_tokenizer(), direct(engine, tiny_tokenizer().encode("import os"), 24))
    stop = whole[6:8]
    for stops in (stop, [stop, "never"]):
        made = client.complete("tiny", "import os", temperature=0.8, seed=5, max_tokens=24, stop=stops)
        assert (made.text, made.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_the_models_are_those_of_the_server(engine: Engine, client: Any) -> None:
    assert client.models() == (Model("tiny", engine.max_length),)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"model": "huge"}, UnknownModel),
        ({"prompt": "word " * 300}, InvalidRequest),
        ({"prompt": [999]}, InvalidRequest),
        ({"max_tokens": 0}, InvalidRequest),
        ({"max_tokens": -1}, InvalidRequest),
        ({"top_p": 0.0}, InvalidRequest),
        ({"temperature": "hot"}, InvalidRequest),
        ({"seed": 2**70}, InvalidRequest),
        ({"stop": 5}, InvalidRequest),
        ({"no_such_option": 1}, InvalidRequest),
    ],
    ids=str,
)
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_what_makes_no_sense_is_an_error_of_the_same_class(
    client: Any, options: dict[str, Any], kind: type[Exception], streams: bool
) -> None:
    asked = {"model": "tiny", "prompt": "a"} | options
    with pytest.raises(kind) as caught:
        _ = list(client.stream(**asked)) if streams else client.complete(**asked)
    assert "Traceback" not in str(caught.value)
    assert caught.type is not ServerFault


@pytest.mark.parametrize(
    ("error", "kind"),
    [(QueueFull("full"), QueueFull), (NotReady("loading"), NotReady), (RuntimeError("secret"), ServerFault)],
)
def test_the_servers_errors_are_of_the_class_that_it_raised(
    serve: Serve, connect: Connect, error: Exception, kind: type[Exception]
) -> None:
    with serve(ScriptedBackend(lambda request: [error])) as servers:
        client = connect(servers, retries=NO_RETRIES)
        for ask in (lambda: client.complete("tiny", "a"), lambda: next(client.stream("tiny", "a"))):
            with pytest.raises(kind) as caught:
                ask()
            assert caught.type is kind
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("error", "kind"), [(NotReady("lost"), NotReady), (RuntimeError("secret"), ServerFault)])
def test_an_error_in_mid_stream_comes_behind_the_text_so_far_and_is_no_second_call(
    serve: Serve, connect: Connect, error: Exception, kind: type[Exception]
) -> None:
    backend = ScriptedBackend(lambda request: [*runs_of(request, [70, 71], [72])[:1], error])
    with serve(backend) as servers:
        stream = connect(servers, sleep=lambda seconds: None).stream("tiny", "a")
        assert next(stream).token_ids == (70, 71)
        with pytest.raises(kind):
            next(stream)
    assert len(backend.requests) == 1


def test_acceptance_is_told_where_something_was_drafted(serve: Serve, connect: Connect) -> None:
    stats = SequenceStats(4, 8, 6, (1, 1, 1, 1))
    backend = ScriptedBackend(lambda request: runs_of(request, [70, 71, 72], [73], stats=stats))
    with serve(backend) as servers:
        client = connect(servers)
        for made in (client.complete("tiny", "a"), list(client.stream("tiny", "a"))[-1]):
            assert made.acceptance == Acceptance(4, 8, 6)
            assert (made.acceptance.rate, made.acceptance.mean_length) == (0.75, 2.5)


@pytest.mark.parametrize("asked", ["off", Speculation(4, 3)])
def test_speculation_is_asked_for_in_the_request(serve: Serve, connect: Connect, asked: Any) -> None:
    backend = ScriptedBackend(lambda request: runs_of(request, [70]))
    with serve(backend) as servers:
        connect(servers).complete("tiny", "a", speculation=asked)
    assert [request.speculation for request in backend.requests] == [Speculation(0, 0) if asked == "off" else asked]


class Hanging(ScriptedBackend):
    """Answers with one token and no more."""

    async def runs(self, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        self.num_open += 1
        try:
            yield runs_of(request, [70], [71])[0]
            await asyncio.sleep(60)
        finally:
            self.num_open -= 1


def test_a_time_out_ends_the_call_and_the_request(serve: Serve, connect: Connect) -> None:
    backend = Hanging(lambda request: [])
    with serve(backend) as servers:
        client = connect(servers, timeout_s=60.0)
        with pytest.raises(TimedOut):
            client.complete("tiny", "a", timeout_s=0.2)
        stream = client.stream("tiny", "a", timeout_s=0.2)
        assert next(stream).token_ids == (70,)
        with pytest.raises(TimedOut):
            next(stream)
        deadline = time.monotonic() + 5
        while backend.num_open:
            assert time.monotonic() < deadline, "the server still works"
            time.sleep(0.005)


def test_a_server_that_is_gone_is_not_ready(serve: Serve, connect: Connect) -> None:
    with serve(ScriptedBackend(lambda request: [])) as servers:
        url = servers
    with pytest.raises(NotReady):
        connect(url, retries=NO_RETRIES).models()
