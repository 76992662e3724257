"""Runs of tokens as messages: what comes with them, and how much one message takes, over a real stream."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace

import pytest

from link import token_stream
from link.token_runs import MAX_TOKENS, to_message, weight
from link.token_sink import MAX_MESSAGE
from protocol.limits import MAX_TOKEN
from protocol.logit_rules import TokenLogprobs
from protocol.request import FinishReason, TokenRun
from tests.link.streams import checked, pair, run, soon


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


def scored(index: int, count: int, num_top: int = 20, reason: FinishReason | None = None) -> TokenRun:
    """Tokens with logprobs that tell which token they belong to; as float32 holds them."""
    told = tuple(
        TokenLogprobs(-float(at), tuple((MAX_TOKEN - at, -at - rank / 2) for rank in range(num_top)))
        for at in range(index, index + count)
    )
    return TokenRun("r", index, tuple(MAX_TOKEN - at for at in range(index, index + count)), reason, logprobs=told)


async def test_sources_come_with_their_tokens_and_again_with_the_end() -> None:
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            for index, sources in ((0, (0,)), (1, (4, -2, 0))):
                part = TokenRun("r", index, tuple(range(len(sources))), sources=sources)
                answer.add(part)
                assert await soon(inbox) == part
            answer.add(TokenRun("r", 4, (7,), FinishReason.LENGTH, sources=(6,)))
            whole = await asyncio.wait_for(answer.ended, 5)
    assert whole.sources == (0, 4, -2, 0, 6)
    assert [each.sources for each in await checked([TokenRun("r", 0, (0,), sources=(0,)), whole])] == [
        (0,),
        (4, -2, 0, 6),
    ]


async def test_what_is_told_of_a_prompt_comes_with_the_end() -> None:
    of_prompt, last = scored(0, 3).logprobs, TokenRun("r", 1, (6,), FinishReason.STOP)
    first = TokenRun("r", 0, (5,), of_prompt=of_prompt)
    async with pair() as (_, address, streams):
        for runs in ([first, last], [replace(first, finish_reason=FinishReason.STOP)]):
            with streams.answer("r", address) as answer:
                for each in runs:
                    answer.add(each)
                assert (await asyncio.wait_for(answer.ended, 5)).of_prompt == of_prompt


async def test_logprobs_come_with_their_tokens_and_again_with_the_end() -> None:
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            for index in (0, 3, 6):
                answer.add(scored(index, 3))
                assert await soon(inbox) == scored(index, 3)
            answer.add(scored(9, 1, reason=FinishReason.LENGTH))
            whole = await asyncio.wait_for(answer.ended, 5)
            assert whole == scored(0, 10, reason=FinishReason.LENGTH)
    assert [each.logprobs for each in await checked([scored(0, 4), scored(2, 3), whole])] == [
        scored(0, 4).logprobs,
        scored(4, 1).logprobs,
        scored(5, 5).logprobs,
    ]


@pytest.mark.parametrize("num_top", [0, 1, 20])
async def test_no_message_is_longer_than_a_sink_takes(num_top: int) -> None:
    count = 2 * MAX_TOKENS // weight(scored(0, 1, num_top).logprobs) + 1
    async with pair() as (sink, address, streams):
        with sink.open("r") as inbox, streams.answer("r", address) as answer:
            answer.add(scored(0, count, num_top))
            sizes = []
            while sum(sizes) < count:
                got = await soon(inbox)
                assert got == scored(got.index, len(got.token_ids), num_top)
                assert to_message(got).ByteSize() < MAX_MESSAGE - (64 << 10)
                sizes.append(len(got.token_ids))
            assert len(sizes) == 3
