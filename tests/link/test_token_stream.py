"""Tokens from a target to an ingress over a real stream: all of them, in few messages, and whatever breaks."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from api.runs import check_runs
from link import token_sink, token_stream
from link.secret import NUM_BYTES, Secret
from link.token_sink import NONCE, PROOF, Inbox, SinkAddress, TokenSink
from link.token_stream import StreamedRuns, TokenStreams, hold_ms
from protocol.pb import tokens_pb2 as pb
from protocol.pb.tokens_pb2_grpc import TokensStub
from protocol.request import FinishReason, TokenRun
from tests.deployments.harness import LoopThread


class CountingSink(TokenSink):
    """A sink that keeps how many runs each message carried."""

    def __init__(self, secret: Secret) -> None:
        super().__init__(secret)
        self.sizes: list[int] = []

    async def Send(self, batches: AsyncIterator[pb.TokenBatch], context: Any) -> pb.Received:
        async def counted() -> AsyncIterator[pb.TokenBatch]:
            async for batch in batches:
                self.sizes += [len(batch.runs)] if not batch.proof else []
                yield batch

        return await super().Send(counted(), context)


@asynccontextmanager
async def pair(join_ms: float = 20.0) -> AsyncIterator[tuple[CountingSink, SinkAddress, TokenStreams]]:
    async with AsyncExitStack() as stack:
        secret = Secret.fresh()
        sink, streams = CountingSink(secret), TokenStreams()
        address = SinkAddress(await sink.start("127.0.0.1", (0, 0)), join_ms, secret)
        stack.push_async_callback(sink.stop)
        stack.push_async_callback(streams.stop)
        yield sink, address, streams


def run(name: str, index: int, *tokens: int) -> TokenRun:
    return TokenRun(name, index, tokens)


def end(name: str, index: int, *tokens: int) -> TokenRun:
    return TokenRun(name, index, tokens, FinishReason.LENGTH)


async def soon(inbox: Inbox) -> TokenRun:
    got: TokenRun = await asyncio.wait_for(inbox.get(), 5)
    return got


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_lone_request_is_never_held_and_many_are_held_for_join_ms_at_most() -> None:
    holds = [hold_ms(num_requests, 20.0) for num_requests in range(1, 65)]
    assert holds[0] == 0
    assert holds == sorted(holds)
    assert holds[7] == holds[-1] == 20.0
    assert {hold_ms(num_requests, 0.0) for num_requests in range(1, 65)} == {0.0}


async def test_what_a_step_commits_for_all_requests_is_one_message() -> None:
    async with pair() as (sink, address, streams):
        with ExitStack() as stack:
            inboxes = [stack.enter_context(sink.open(f"r{i}")) for i in range(8)]
            answers = [stack.enter_context(streams.answer(f"r{i}", address)) for i in range(8)]
            for step in range(3):
                for i, answer in enumerate(answers):
                    answer.add(run(f"r{i}", 2 * step, i, step))
                for i, inbox in enumerate(inboxes):
                    assert await soon(inbox) == run(f"r{i}", 2 * step, i, step)
        assert sink.sizes == [8, 8, 8]


async def test_tokens_never_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(run("r", 0, 7))
            assert await soon(inbox) == run("r", 0, 7)


async def test_under_load_the_steps_within_join_ms_are_one_message() -> None:
    async with pair(join_ms=60.0) as (sink, address, streams):
        with ExitStack() as stack:
            inbox = stack.enter_context(sink.open("r0"))
            answers = [stack.enter_context(streams.answer(f"r{i}", address)) for i in range(30)]
            answers[0].add(run("r0", 0, 0))
            await soon(inbox)
            began = asyncio.get_running_loop().time()
            for step in range(1, 30):
                answers[0].add(run("r0", step, step))
                await asyncio.sleep(0.005)
            num_tokens = 1
            while num_tokens < 30:
                num_tokens += len((await soon(inbox)).token_ids)
            took_ms = 1e3 * (asyncio.get_running_loop().time() - began)
        assert len(sink.sizes) <= 2 + took_ms / 60


async def test_first_tokens_do_not_wait_for_those_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_stream, "CHUNK_MS", 5000.0)
    async with pair(join_ms=5000.0) as (sink, address, streams):
        with sink.open("old") as old, sink.open("new") as new, streams.answer("old", address) as answer:
            answer.add(run("old", 0, 5))
            assert await soon(old) == run("old", 0, 5)
            with streams.answer("new", address) as fresh:
                answer.add(run("old", 1, 6))
                await asyncio.sleep(0.05)
                assert old.empty()
                fresh.add(run("new", 0, 7))
                assert await asyncio.wait_for(new.get(), 1) == run("new", 0, 7)


async def test_the_end_has_every_token_and_the_last_run_comes_with_it_only() -> None:
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(run("r", 0, 5, 6))
            await soon(inbox)
            answer.add(end("r", 2, 7))
            assert await asyncio.wait_for(answer.ended, 5) == end("r", 0, 5, 6, 7)
            await asyncio.sleep(0.05)
            assert inbox.empty()


async def test_without_a_sink_nothing_is_sent() -> None:
    streams = TokenStreams()
    with streams.answer("r", None) as answer:
        answer.add(run("r", 0, 5))
        answer.add(end("r", 1, 6))
        assert await asyncio.wait_for(answer.ended, 5) == end("r", 0, 5, 6)
    assert streams._streams == {}


async def test_a_sink_that_cannot_be_reached_takes_no_token_away(caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as (sink, address, streams):
        await sink.stop()
        with streams.answer("r", address) as answer:
            answer.add(run("r", 0, 5))
            await until(lambda: "tokens do not reach the ingress" in caplog.text)
            answer.add(end("r", 1, 6))
            assert await asyncio.wait_for(answer.ended, 5) == end("r", 0, 5, 6)


async def test_after_a_break_everything_comes_again_and_each_token_counts_once() -> None:
    async with pair() as (sink, address, streams):
        host, _, port = address.address.partition(":")
        with streams.answer("r", address) as answer:
            with sink.open("r") as inbox:
                answer.add(run("r", 0, 5, 6))
                received = [await soon(inbox)]
            await sink.stop()
            answer.add(run("r", 2, 7))
            again = TokenSink(address.secret)
            assert await again.start(host, (int(port), int(port))) == address.address
            with again.open("r") as inbox:
                answer.add(run("r", 3, 8))
                while not received or max(run.index + len(run.token_ids) for run in received) < 4:
                    received.append(await soon(inbox))
            answer.add(end("r", 4, 9))
            received.append(await asyncio.wait_for(answer.ended, 5))
            await again.stop()
        assert received[1].index == 0, "the new stream began anew"
        assert await ordered(received) == [5, 6, 7, 8, 9]


async def ordered(runs: Sequence[TokenRun]) -> list[int]:
    async def source() -> AsyncGenerator[TokenRun, None]:
        for each in runs:
            yield each

    async with aclosing(check_runs(source())) as fresh:
        return [token for each in [each async for each in fresh] for token in each.token_ids]


async def test_tokens_of_requests_that_are_not_open_are_dropped() -> None:
    async with pair() as (sink, address, streams):
        with (
            sink.open("mine") as inbox,
            streams.answer("gone", address) as gone,
            streams.answer("mine", address) as mine,
        ):
            gone.add(run("gone", 0, 5))
            mine.add(run("mine", 0, 6))
            assert await soon(inbox) == run("mine", 0, 6)
        assert sink._inboxes == {}


async def test_a_stream_to_an_ingress_that_is_gone_is_forgotten() -> None:
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(run("r", 0, 5))
            await soon(inbox)
        assert len(streams._streams) == 1
        await sink.stop()
        await until(lambda: not streams._streams)


def test_an_engines_thread_may_add_as_fast_as_it_likes(runner: LoopThread) -> None:
    num_requests, num_steps = 4, 500

    def work(answers: list[StreamedRuns]) -> None:
        for step in range(num_steps):
            for i, answer in enumerate(answers):
                made = end if step == num_steps - 1 else run
                answer.add(made(f"r{i}", step, 1000 * i + step))

    async def serve_all() -> list[list[int]]:
        async with pair(join_ms=1.0) as (sink, address, streams):
            with ExitStack() as stack:
                inboxes = [stack.enter_context(sink.open(f"r{i}")) for i in range(num_requests)]
                answers = [stack.enter_context(streams.answer(f"r{i}", address)) for i in range(num_requests)]
                thread = threading.Thread(target=work, args=(answers,))
                thread.start()
                ends = [await asyncio.wait_for(answer.ended, 10) for answer in answers]
                thread.join()
                await asyncio.sleep(0.1)
                return [
                    await ordered([*(inbox.get_nowait() for _ in range(inbox.qsize())), last])
                    for inbox, last in zip(inboxes, ends, strict=True)
                ]

    expected = [[1000 * i + step for step in range(num_steps)] for i in range(num_requests)]
    assert runner.run(serve_all()) == expected


@asynccontextmanager
async def raw(address: SinkAddress, nonce: bytes = b"") -> AsyncIterator[Any]:
    """A stream as anybody may open it who reaches the port."""
    async with grpc.aio.insecure_channel(address.address) as channel:
        stub: Any = TokensStub(channel)  # type: ignore[no-untyped-call]
        yield stub.Send(metadata=((NONCE, nonce),) if nonce else ())


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await asyncio.wait_for(call, 5)
    return refusal.value.code()


async def forged(address: SinkAddress, secret: Secret, *batches: pb.TokenBatch) -> grpc.StatusCode:
    """How a stream ends that begins with a proof by this secret and goes on with these."""
    nonce = secrets.token_bytes(NUM_BYTES)
    async with raw(address, nonce) as call:
        told = dict(await call.initial_metadata())
        proof = secret.proof(b"target", nonce, told[NONCE])
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            for batch in (pb.TokenBatch(proof=proof), *batches):
                await call.write(batch)
        return await refused(call)


# A stream that is written to while it is refused may end with an error of gRPC's own.
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
FORGERY = pb.TokenBatch(runs=[pb.Run(request_id="r", index=0, token_ids=[6, 6, 6])])


async def test_tokens_of_who_does_not_hold_the_secret_reach_no_answer() -> None:
    """They went into the answer of any request whose id was known, and the true ones were dropped as doubles."""
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            async with raw(address) as call:
                with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await call.write(FORGERY)
                assert await refused(call) in REFUSALS
            assert await forged(address, Secret.fresh(), FORGERY) in REFUSALS
            answer.add(run("r", 0, 5))
            assert await soon(inbox) == run("r", 0, 5)
            assert inbox.empty()


async def test_a_proof_that_was_heard_is_of_no_use_for_another_stream() -> None:
    async with pair() as (_, address, _):
        nonce = secrets.token_bytes(NUM_BYTES)
        async with raw(address, nonce) as first:
            heard = address.secret.proof(b"target", nonce, dict(await first.initial_metadata())[NONCE])
        async with raw(address, nonce) as call:
            told = dict(await call.initial_metadata())
            assert told[PROOF] == address.secret.proof(b"sink", nonce, told[NONCE])
            with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await call.write(pb.TokenBatch(proof=heard))
            assert await refused(call) in REFUSALS


async def test_no_token_goes_to_who_listens_in_place_of_the_ingress(caplog: pytest.LogCaptureFixture) -> None:
    class Curious(TokenSink):
        async def Send(self, batches: AsyncIterator[pb.TokenBatch], context: Any) -> pb.Received:
            await context.send_initial_metadata(((NONCE, bytes(NUM_BYTES)), (PROOF, bytes(NUM_BYTES))))
            got.extend([batch async for batch in batches])
            return pb.Received()

    got: list[pb.TokenBatch] = []
    sink, streams = Curious(Secret.fresh()), TokenStreams()
    address = SinkAddress(await sink.start("127.0.0.1", (0, 0)), 20.0, Secret.fresh())
    with streams.answer("r", address) as answer:
        answer.add(run("r", 0, 5))
        await until(lambda: "does not hold the secret of the ingress" in caplog.text)
        answer.add(end("r", 1, 6))
        assert await asyncio.wait_for(answer.ended, 5) == end("r", 0, 5, 6)
    await streams.stop()
    await sink.stop()
    assert got == []


@pytest.mark.parametrize(
    "batch",
    [
        pb.TokenBatch(runs=[pb.Run(request_id="r", token_ids=[1 << 31])]),
        pb.TokenBatch(runs=[pb.Run(request_id="r", index=1 << 31)]),
        pb.TokenBatch(runs=[pb.Run(request_id="r")] * (token_sink.MAX_RUNS + 1)),
    ],
    ids=["token", "index", "runs"],
)
async def test_what_no_target_sends_ends_its_own_stream(batch: pb.TokenBatch) -> None:
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(run("r", 0, 5))
            assert await soon(inbox) == run("r", 0, 5)
            assert await forged(address, address.secret, batch) in REFUSALS
            answer.add(run("r", 1, 6))
            assert await soon(inbox) == run("r", 1, 6)
            assert inbox.empty()


async def test_a_stream_that_proves_nothing_is_closed_and_the_oldest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_sink, "MAX_STRANGERS", 2)
    async with pair() as (sink, address, streams), AsyncExitStack() as stack:
        calls = []
        for _ in range(3):
            calls.append(await stack.enter_async_context(raw(address, bytes(NUM_BYTES))))
            await calls[-1].initial_metadata()
        assert await refused(calls[0]) in REFUSALS
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(run("r", 0, 5))
            assert await soon(inbox) == run("r", 0, 5)


async def test_a_stream_that_proves_nothing_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sink, "HANDSHAKE_S", 0.05)
    async with pair() as (sink, address, _):
        async with raw(address, bytes(NUM_BYTES)) as call:
            assert await refused(call) in REFUSALS
        assert sink._strangers == {}


async def test_answers_longer_than_a_message_come_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_stream, "MAX_TOKENS", 10)
    async with pair() as (sink, address, streams):
        with sink.open("a") as first, sink.open("b") as second, ExitStack() as stack:
            answers = [stack.enter_context(streams.answer(name, address)) for name in "ab"]
            for name, answer in zip("ab", answers, strict=True):
                answer.add(run(name, 0, *range(25)))
            for inbox in (first, second):
                got: list[int] = []
                while len(got) < 25:
                    got += (await soon(inbox)).token_ids
                assert got == list(range(25))


async def test_an_ingress_that_comes_back_with_another_secret_gets_a_stream_of_its_own() -> None:
    async with pair() as (sink, address, streams):
        host, _, port = address.address.partition(":")
        with streams.answer("old", address):
            await sink.stop()
            fresh = Secret.fresh()
            again = TokenSink(fresh)
            await again.start(host, (int(port), int(port)))
            moved = SinkAddress(address.address, 20.0, fresh)
            with again.open("new") as inbox, streams.answer("new", moved) as answer:
                answer.add(run("new", 0, 5))
                assert await soon(inbox) == run("new", 0, 5)
            await again.stop()
