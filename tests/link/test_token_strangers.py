"""Who reaches the port of a token stream without its secret, or sends what no target sends, reaches no answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from link import token_sink
from link.secret import NUM_BYTES, Secret
from link.token_sink import NONCE, PROOF, SinkAddress, TokenSink
from link.token_stream import TokenStreams
from protocol.pb import tokens_pb2 as pb
from protocol.pb.tokens_pb2_grpc import TokensStub
from tests.link.streams import end, pair, run, soon, until


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
        pb.TokenBatch(runs=[pb.Run(request_id="r", token_ids=[5, 6], logprobs=[pb.Logprobs()])]),
        pb.TokenBatch(runs=[pb.Run(request_id="r", token_ids=[5, 6], sources=[0])]),
        pb.TokenBatch(runs=[pb.Run(request_id="r", token_ids=[5], sources=[-5000])]),
        *(
            pb.TokenBatch(runs=[pb.Run(request_id="r", token_ids=[5], logprobs=[logprobs])])
            for logprobs in (
                pb.Logprobs(chosen=0.5),
                pb.Logprobs(top_ids=[5], top=[float("nan")]),
                pb.Logprobs(top_ids=[5]),
                pb.Logprobs(top_ids=[1 << 31], top=[-1.0]),
                pb.Logprobs(top_ids=range(21), top=[-1.0] * 21),
            )
        ),
    ],
    ids=["token", "index", "runs", "logprobs", "sources", "exit", "above 0", "nan", "top", "top token", "many"],
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
