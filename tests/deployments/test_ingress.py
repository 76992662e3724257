"""The ingress in this process, in front of handles that play a script: order, errors and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from api.generation import BackendFault
from api.prompts import encode
from api.spans import NO_SPANS
from deployments.backend import ServeBackend
from deployments.handles import translate_error
from deployments.target import TargetReplica
from deployments.texts import NUM_TOKENIZER_THREADS
from link.token_stream import TokenStreams
from protocol.errors import DraftPoolError, InvalidRequest, NotReady, QueueFull, UnknownModel
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from tests.api.api_twins import run
from tests.deployments.handle_twins import Handle, serving

REQUEST = GenerateRequest("r", (5,), SamplingParams(), StopRules(8))


async def collect(backend: ServeBackend, model: str = "a") -> list[TokenRun]:
    return [each async for each in backend.generate(model, REQUEST)]


async def test_tokens_arrive_during_the_call_and_the_last_ones_at_its_end(tokenizer_path: str) -> None:
    more = asyncio.Event()
    handle = Handle([run(0, 5, 6), more, run(2, 7), run(3, 8, last=True)])
    async with serving(tokenizer_path, a=handle) as backend, aclosing(backend.generate("a", REQUEST)) as runs:
        assert await anext(runs) == run(0, 5, 6)
        more.set()
        assert [token for each in [each async for each in runs] for token in each.token_ids] == [7, 8]
    assert handle.responses[0].num_cancelled == 0


async def test_a_whole_answer_is_one_run_and_nothing_of_it_is_streamed(tokenizer_path: str) -> None:
    handle = Handle([run(0, 5, 6), run(2, 7), run(3, 8, last=True)])
    async with serving(tokenizer_path, a=handle) as backend:
        backend._sink.open = None  # type: ignore[method-assign, assignment]
        assert await backend.complete("a", REQUEST) == run(0, 5, 6, 7, 8, last=True)


async def test_closing_the_generator_cancels_the_call_once(tokenizer_path: str) -> None:
    handle = Handle([run(0, 5), asyncio.Event()])
    async with serving(tokenizer_path, a=handle) as backend:
        async with aclosing(backend.generate("a", REQUEST)) as runs:
            assert await anext(runs) == run(0, 5)
        await asyncio.sleep(0)
        assert handle.responses[0].num_cancelled == 1


@pytest.mark.parametrize("whole", [False, True])
async def test_cancelling_the_reader_cancels_the_call(tokenizer_path: str, whole: bool) -> None:
    handle = Handle([asyncio.Event()])
    async with serving(tokenizer_path, a=handle) as backend:
        task: Any = asyncio.ensure_future(backend.complete("a", REQUEST) if whole else collect(backend))
        while not handle.responses:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert handle.responses[0].num_cancelled == 1


async def test_two_threads_tokenize_however_many_prompts_arrive_at_once(
    tokenizer_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what a thread has tokenized it keeps: its memory is the tokenizer's cache times the threads."""
    async with serving(tokenizer_path, a=Handle()) as backend:
        card = await backend.card("a")
        assert card is not None
        card = replace(card, max_model_len=1 << 20)
        threads, plain = Counter[str](), card.tokenizer.encode

        def seen(text: str, **options: Any) -> Any:
            threads[threading.current_thread().name] += 1
            return plain(text, **options)

        monkeypatch.setattr(card.tokenizer, "encode", seen)
        texts = [" ".join(map(str, range(first, first + 1000))) for first in range(64)]
        assert await asyncio.gather(*(encode(card, text) for text in texts)) == [tuple(plain(text)) for text in texts]
        assert threads.total() == len(texts)
        assert len(threads) <= NUM_TOKENIZER_THREADS
        assert threading.current_thread().name not in threads


async def test_an_unknown_model_has_no_handle(tokenizer_path: str) -> None:
    async with serving(tokenizer_path, a=Handle()) as backend:
        with pytest.raises(UnknownModel, match="this server has a"):
            backend.generate("b", REQUEST)


@pytest.mark.parametrize("refusal", [QueueFull("9 requests are queued"), InvalidRequest("no", "top_k")])
async def test_a_refusal_that_a_replica_returns_is_raised_by_the_backend(
    tokenizer_path: str, refusal: DraftPoolError
) -> None:
    handle = Handle([refusal])
    async with serving(tokenizer_path, a=handle) as backend:
        for ask in (collect(backend), backend.complete("a", REQUEST)):
            with pytest.raises(type(refusal)) as caught:
                await ask
            assert caught.value is refusal
    assert [response.num_cancelled for response in handle.responses] == [0, 0]


async def test_a_replica_returns_a_refusal_so_that_serve_does_not_log_it() -> None:
    class FullEngine:
        def submit(self, request: GenerateRequest, on_run: Any) -> None:
            raise QueueFull("9 requests are queued")

    watched = {"_spans": NO_SPANS, "_config": SimpleNamespace(name="a")}
    replica: Any = SimpleNamespace(_engine=FullEngine(), _streams=TokenStreams(), **watched)
    assert isinstance(await TargetReplica.generate(replica, REQUEST), QueueFull)


def test_the_replicas_own_error_is_unwrapped_whichever_way_ray_wraps_it() -> None:
    cause = InvalidRequest("no", "top_k")
    wrapped = RayTaskError("generate", "Traceback: secret", cause)
    for error in (cause, wrapped, wrapped.as_instanceof_cause()):
        found = translate_error(error)
        assert type(found) is InvalidRequest
        assert (str(found), found.param) == ("no", "top_k")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ActorDiedError(), NotReady),
        (BackPressureError(num_queued_requests=3, max_queued_requests=2), QueueFull),
        (RuntimeError("secret"), RuntimeError),
    ],
)
async def test_a_lost_or_full_replica_raises_an_error_of_the_api(
    tokenizer_path: str, error: Exception, expected: type[Exception]
) -> None:
    async with serving(tokenizer_path, a=Handle([run(0, 5), error])) as backend:
        with pytest.raises(expected):
            await collect(backend)


def test_a_deployment_that_is_gone_is_not_ready() -> None:
    assert type(translate_error(DeploymentUnavailableError.__new__(DeploymentUnavailableError))) is NotReady


async def test_tokens_that_a_stranger_sends_to_the_sink_end_the_answer(tokenizer_path: str) -> None:
    more = asyncio.Event()
    handle = Handle([more, run(0, 5, 6), run(2, 7, last=True)])
    async with serving(tokenizer_path, a=handle) as backend, aclosing(backend.generate("a", REQUEST)) as runs:
        first = asyncio.ensure_future(anext(runs))
        while "r" not in backend._sink._inboxes:
            await asyncio.sleep(0)
        backend._sink._inboxes["r"].put_nowait(run(0, 99))
        assert await first == run(0, 99)
        more.set()
        with pytest.raises(BackendFault):
            [each async for each in runs]
