"""Tokens from a target to an ingress over a real stream: all of them, in few messages, and whatever breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from link import token_stream
from link.secret import Secret
from link.token_sink import SinkAddress, TokenSink
from link.token_stream import StreamedRuns, TokenStreams, hold_ms
from protocol.request import TokenRun
from tests.deployments.harness import LoopThread
from tests.link.streams import checked, end, pair, run, soon, until


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


async def test_an_answer_that_began_elsewhere_keeps_its_indices() -> None:
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(run("r", 7, 5, 6))
            assert await soon(inbox) == run("r", 7, 5, 6)
            answer.add(run("r", 9, 7))
            assert await soon(inbox) == run("r", 9, 7)
            answer.take_again()
            answer.add(run("r", 10, 8))
            assert await soon(inbox) == run("r", 7, 5, 6, 7, 8)
            answer.add(end("r", 11, 9))
            assert await asyncio.wait_for(answer.ended, 5) == end("r", 7, 5, 6, 7, 8, 9)
        with streams.answer("s", address) as answer:
            answer.add(end("s", 4))
            assert await asyncio.wait_for(answer.ended, 5) == end("s", 4)


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
    return [token for each in await checked(runs) for token in each.token_ids]


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
