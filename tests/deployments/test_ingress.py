"""The ingress in this process, in front of handles that play a script: order, errors and cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.api.generation import BackendFault
from deployments.api.runs import in_order
from deployments.discovery import PoolMember
from deployments.ingress import ServeBackend, in_our_words
from deployments.target import TargetReplica
from protocol.errors import DraftPoolError, InvalidRequest, NotReady, QueueFull, UnknownModel
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from protocol.stats import PoolStats
from tests.deployments.api_twins import tiny_tokenizer

REQUEST = GenerateRequest("r", (5,), SamplingParams(), StopRules(8))
TOLD = {"max_model_len": 64, "vocab_size": 320, "eos_token_ids": (1,), "ready": True}


class Response:
    """A streaming response: runs, errors, events to wait for."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self._steps = iter(steps)
        self.num_cancelled = 0

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> TokenRun:
        step = next(self._steps, None)
        if step is None:
            raise StopAsyncIteration
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
        return step

    def cancel(self) -> None:
        self.num_cancelled += 1


class Answers:
    """What a broadcast gives."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = answers

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> Sequence[Any]:
        return self._answers


class Handle:
    """A Serve handle that answers `describe` with `told` and `generate` with `steps`, and a broadcast with `stats`."""

    stats: Sequence[Any] = ()

    def __init__(self, steps: Sequence[Any] = (), told: Any = TOLD) -> None:
        self.steps, self.told, self.responses = steps, told, list[Response]()
        self._method = ""

    def options(self, method_name: str, **options: Any) -> Handle:
        made = Handle(self.steps, self.told)
        made._method, made.responses = method_name, self.responses
        return made

    def remote(self, *args: Any) -> Any:
        if self._method == "generate":
            self.responses.append(Response(self.steps))
            return self.responses[-1]
        return self._describe()

    async def _describe(self) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        if isinstance(self.told, asyncio.Event):
            await self.told.wait()
        return self.told

    def broadcast(self, method_name: str) -> Answers:
        if isinstance(self.told, Exception):
            raise self.told
        return Answers(self.stats)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def backend_of(tokenizer_path: str, pool: Any = None, **handles: Any) -> ServeBackend:
    return ServeBackend(handles, dict.fromkeys(handles, tokenizer_path), pool)


def run(index: int, *tokens: int, last: bool = False) -> TokenRun:
    return TokenRun("r", index, tokens, FinishReason.LENGTH if last else None)


async def collect(backend: ServeBackend, model: str = "a") -> list[TokenRun]:
    return [each async for each in backend.generate(model, REQUEST)]


async def test_runs_come_through_in_order(tokenizer_path: str) -> None:
    runs = [run(0, 5, 6), run(2, 7), run(3, 8, last=True)]
    handle = Handle(runs)
    assert await collect(backend_of(tokenizer_path, a=handle)) == runs
    assert handle.responses[0].num_cancelled == 0


async def test_tokens_that_come_twice_are_dropped_by_their_index(tokenizer_path: str) -> None:
    steps = [run(0, 5, 6), run(0, 5), run(1, 6, 7), run(0, 5, 6, 7, 8), run(3, 8, last=True)]
    got = await collect(backend_of(tokenizer_path, a=Handle(steps)))
    assert got == [run(0, 5, 6), run(2, 7), run(3, 8), run(4, last=True)]


async def test_a_gap_is_a_fault_and_ends_the_stream(tokenizer_path: str) -> None:
    handle = Handle([run(0, 5), run(2, 7), run(3, 8, last=True)])
    with pytest.raises(BackendFault, match="tokens 1 to 1 are missing"):
        await collect(backend_of(tokenizer_path, a=handle))
    assert handle.responses[0].num_cancelled == 1


async def test_a_stream_that_just_ends_is_a_fault(tokenizer_path: str) -> None:
    with pytest.raises(BackendFault, match="without a finish reason"):
        await collect(backend_of(tokenizer_path, a=Handle([run(0, 5)])))


async def test_closing_the_generator_cancels_the_call_once(tokenizer_path: str) -> None:
    handle = Handle([run(0, 5), asyncio.Event()])
    async with aclosing(backend_of(tokenizer_path, a=handle).generate("a", REQUEST)) as runs:
        assert await anext(runs) == run(0, 5)
    assert handle.responses[0].num_cancelled == 1


async def test_cancelling_the_reader_cancels_the_call(tokenizer_path: str) -> None:
    handle = Handle([asyncio.Event()])
    task = asyncio.create_task(collect(backend_of(tokenizer_path, a=handle)))
    while not handle.responses:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.responses[0].num_cancelled == 1


async def test_a_target_is_known_once_it_has_told_about_itself_whatever_the_others_do(tokenizer_path: str) -> None:
    backend = backend_of(tokenizer_path, a=Handle(), b=Handle(told=ActorDiedError()))
    card = await backend.card("a")
    assert card is not None
    assert (card.id, card.max_model_len, card.vocab_size, card.eos_token_ids) == ("a", 64, 320, (1,))
    assert await backend.card("b") is None
    assert backend.names == ("a", "b")
    assert not await backend.ready()


async def test_an_ingress_is_ready_when_every_target_says_so(tokenizer_path: str) -> None:
    late = Handle(told=TOLD | {"ready": False})
    assert await backend_of(tokenizer_path, a=Handle(), b=Handle()).ready()
    assert not await backend_of(tokenizer_path, a=Handle(), b=late).ready()


async def test_what_a_target_tells_anew_counts(tokenizer_path: str) -> None:
    handle = Handle()
    backend = backend_of(tokenizer_path, a=handle)
    assert await backend.card("a")
    backend._describe["a"].told = TOLD | {"max_model_len": 32}  # type: ignore[attr-defined]
    assert await backend.ready()
    card = await backend.card("a")
    assert card is not None
    assert card.max_model_len == 32


async def test_a_target_that_does_not_answer_is_waited_for_a_second_or_so(tokenizer_path: str) -> None:
    backend = backend_of(tokenizer_path, a=Handle(told=asyncio.Event()), b=Handle(told=asyncio.Event()))
    began = time.monotonic()
    assert not await backend.ready()
    assert time.monotonic() - began < 2


async def test_statistics_are_of_every_replica_that_answers(tokenizer_path: str) -> None:
    up, down, pool = Handle(), Handle(told=ActorDiedError()), Handle()
    up.stats = [{"num_running": 1}, ActorDiedError(), {"num_running": 0}]
    counts = PoolStats(3, 4, 8, 9, 1, 30, 2, 0.5)
    pool.stats = [PoolMember("127.0.0.1:1", "pool-0", (2,), "hash", 64, 1, counts)]
    told = await backend_of(tokenizer_path, pool, a=up, b=down).stats()
    assert told["targets"] == {"a": [{"num_running": 1}, {"num_running": 0}], "b": []}
    assert told["pool"] == [asdict(counts)]
    assert (await backend_of(tokenizer_path, a=up).stats())["pool"] == []


def test_an_unknown_model_has_no_handle(tokenizer_path: str) -> None:
    with pytest.raises(UnknownModel, match="this server has a"):
        backend_of(tokenizer_path, a=Handle()).generate("b", REQUEST)


@pytest.mark.parametrize("refusal", [QueueFull("9 requests are queued"), InvalidRequest("no", "top_k")])
async def test_a_refusal_comes_as_a_value_and_is_raised_here(tokenizer_path: str, refusal: DraftPoolError) -> None:
    handle = Handle([refusal])
    with pytest.raises(type(refusal)) as caught:
        await collect(backend_of(tokenizer_path, a=handle))
    assert caught.value is refusal
    assert handle.responses[0].num_cancelled == 0


async def test_a_replica_refuses_by_a_value_which_serve_does_not_log() -> None:
    class FullEngine:
        def submit(self, request: GenerateRequest, on_run: Any) -> None:
            raise QueueFull("9 requests are queued")

    replica: Any = SimpleNamespace(_engine=FullEngine())
    (refusal,) = [item async for item in TargetReplica.generate(replica, REQUEST)]
    assert isinstance(refusal, QueueFull)


def test_the_replicas_own_error_is_unwrapped_whichever_way_ray_wraps_it() -> None:
    cause = InvalidRequest("no", "top_k")
    wrapped = RayTaskError("generate", "Traceback: secret", cause)
    for error in (cause, wrapped, wrapped.as_instanceof_cause()):
        found = in_our_words(error)
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
async def test_a_lost_or_full_replica_is_told_in_our_words(
    tokenizer_path: str, error: Exception, expected: type[Exception]
) -> None:
    handle = Handle([run(0, 5), error])
    with pytest.raises(expected):
        await collect(backend_of(tokenizer_path, a=handle))


def test_a_deployment_that_is_gone_is_not_ready() -> None:
    assert type(in_our_words(DeploymentUnavailableError.__new__(DeploymentUnavailableError))) is NotReady


async def test_in_order_closes_what_it_reads() -> None:
    closed = []

    async def source() -> Any:
        try:
            yield run(0, 5)
            yield run(1, 6)
        finally:
            closed.append(True)

    async with aclosing(in_order(source())) as runs:
        await anext(runs)
    assert closed == [True]
