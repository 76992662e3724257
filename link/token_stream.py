"""A target replica's end of the token streams: one to each ingress replica that has requests here.

The engine's thread only appends to a list and, at most once a message, wakes the event loop. A message carries
the new tokens of all requests of that ingress, so it costs the same for one request or for fifty. Under load messages
are held back (`hold_ms`), since each becomes a chunk per request that ingress and proxy must carry.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from link.secret import NUM_BYTES
from link.token_runs import MAX_RUNS, MAX_TOKENS, to_message, weight
from link.token_sink import HANDSHAKE_S, NONCE, PROOF, SinkAddress
from protocol.logit_rules import TokenLogprobs
from protocol.pb import tokens_pb2 as pb
from protocol.pb.tokens_pb2_grpc import TokensStub
from protocol.request import TokenRun

logger = logging.getLogger(__name__)

CHUNK_MS = 3.0  # several times what a chunk costs on its way out, so that most of the time is left to the model
RETRY_S = 0.5

# A dead machine sends no reset: pings find it.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def hold_ms(num_requests: int, join_ms: float) -> float:
    """How long after a message the next one waits: not at all for a lone request, join_ms at most for many."""
    return min(join_ms, CHUNK_MS * (num_requests - 1))


class StreamedRuns:
    """What the engine has committed of one request. `add` is for the engine's thread, the rest for the loop's.

    `take` leaves out the last run, which comes with the end, so that the end never comes alone.
    """

    def __init__(self, request_id: str, on_tokens: Callable[[bool], None] | None = None) -> None:
        """on_tokens: called on the engine's thread when tokens came; told whether they are the first."""
        self.ended: asyncio.Future[TokenRun] = asyncio.get_running_loop().create_future()
        self._request_id = request_id
        self._first = 0  # the index of the first token; not 0 where the answer began at another replica
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._sources: list[int] = []
        self._num_taken = 0
        self._num_cached = 0
        self._of_prompt: tuple[TokenLogprobs, ...] = ()
        self._on_tokens = on_tokens

    def add(self, run: TokenRun) -> None:
        if not self._token_ids:
            self._first, self._of_prompt = run.index, run.of_prompt
        if run.finish_reason is not None:
            self.ended.get_loop().call_soon_threadsafe(self._end, run)
            return
        self._num_cached = run.num_cached
        self._logprobs += run.logprobs  # before the tokens, which the loop looks at first
        self._sources += run.sources
        self._token_ids += run.token_ids
        if self._on_tokens is not None:
            self._on_tokens(run.index == self._first)

    @property
    def weight(self) -> int:
        """How much of a message one of its tokens takes."""
        return weight(self._logprobs)

    def take(self, most: int) -> pb.Run | None:
        """Up to so many of the tokens that were not taken yet."""
        begin = self._num_taken
        fresh = self._token_ids[begin : begin + most]
        if not fresh:
            return None
        self._num_taken += len(fresh)
        told, sources = tuple(self._logprobs[begin : self._num_taken]), tuple(self._sources[begin : self._num_taken])
        where, cached = self._first + begin, self._num_cached
        run = TokenRun(self._request_id, where, tuple(fresh), logprobs=told, sources=sources, num_cached=cached)
        return to_message(run)

    def take_again(self) -> None:
        """Makes the next `take` begin with the first token."""
        self._num_taken = 0

    def _end(self, run: TokenRun) -> None:
        if not self.ended.done():
            token_ids, logprobs = (*self._token_ids, *run.token_ids), (*self._logprobs, *run.logprobs)
            sources, of_prompt = (*self._sources, *run.sources), self._of_prompt or run.of_prompt
            told: dict[str, Any] = {"logprobs": logprobs, "sources": sources, "of_prompt": of_prompt}
            whole = replace(run, index=self._first, token_ids=token_ids, **told)
            self.ended.set_result(whole)


class TokenStreams:
    """Made and used on one event loop."""

    def __init__(self) -> None:
        self._streams: dict[SinkAddress, _Stream] = {}

    @contextmanager
    def answer(self, request_id: str, sink: SinkAddress | None) -> Iterator[StreamedRuns]:
        """Until the block ends, tokens that are added to the answer go to the sink, if there is one."""
        if sink is None:
            yield StreamedRuns(request_id)
            return
        stream = self._streams.get(sink)
        if stream is None:
            stream = self._streams[sink] = _Stream(sink, self._drop)
        answer = StreamedRuns(request_id, stream.on_tokens)
        stream.answers.add(answer)
        try:
            yield answer
        finally:
            stream.answers.remove(answer)

    async def stop(self) -> None:
        tasks = [stream.task for stream in self._streams.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, stream: _Stream) -> None:
        del self._streams[stream.sink]


class _Stream:
    """The stream to one ingress replica. It is opened again as long as requests of that ingress are under way."""

    def __init__(self, sink: SinkAddress, on_end: Callable[[_Stream], None]) -> None:
        self.sink = sink
        self.answers: set[StreamedRuns] = set()
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._woken = False
        self._sent_s = 0.0
        self.task = asyncio.create_task(self._run())

    def on_tokens(self, first: bool) -> None:
        """Called on the engine's thread. Wakes the loop unless it has been woken already."""
        if first or not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake, first)

    def _wake(self, first: bool) -> None:
        hold_s = 0.0 if first else hold_ms(len(self.answers), self.sink.join_ms) / 1e3
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._sent_s + hold_s, self._due.set)

    def _take(self) -> pb.TokenBatch:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._sent_s = self._loop.time()
        self._woken = False  # before the tokens are read: those that come meanwhile wake again
        runs: list[pb.Run] = []
        room = MAX_TOKENS
        for answer in self.answers:
            weight = answer.weight
            most = room // weight if len(runs) < MAX_RUNS else 0
            run = answer.take(most)
            num_taken = len(run.token_ids) if run else 0
            if run:
                runs.append(run)
                room -= num_taken * weight
            if num_taken == most:
                self._due.set()  # the next message has the rest
        return pb.TokenBatch(runs=runs)

    async def _run(self) -> None:
        while True:
            try:
                await self._send()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
                logger.info("the token stream to the ingress at %s ended: %s", self.sink.address, type(error).__name__)
            except Unproved as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("sending tokens to the ingress at %s failed", self.sink.address)
            if not self.answers:
                self._on_end(self)
                return
            logger.warning("tokens do not reach the ingress at %s; its answers come whole", self.sink.address)
            await asyncio.sleep(RETRY_S)

    async def _send(self) -> None:
        """Sends until the stream ends. What was on its way is lost then, so a new stream begins with all of every
        answer.
        """
        for answer in self.answers:
            answer.take_again()
        self._due.set()
        async with grpc.aio.insecure_channel(self.sink.address, options=CHANNEL_OPTIONS) as channel:
            call = await opened(channel, self.sink)
            call.add_done_callback(lambda _: self._due.set())
            while not call.done():
                await self._due.wait()
                batch = self._take()
                if batch.runs:
                    await call.write(batch)


class Unproved(Exception):
    """The listener is not the ingress that the call came from."""


async def opened(channel: grpc.aio.Channel, sink: SinkAddress) -> Any:
    """A stream whose both ends have proved to hold the secret of the sink."""
    stub: Any = TokensStub(channel)  # type: ignore[no-untyped-call]
    nonce = secrets.token_bytes(NUM_BYTES)
    call = stub.Send(metadata=((NONCE, nonce),))
    async with asyncio.timeout(HANDSHAKE_S):
        told = dict(await call.initial_metadata())
    if not call.done() and not sink.secret.proves(told.get(PROOF, b""), b"sink", nonce, told.get(NONCE, b"")):
        call.cancel()
        raise Unproved(f"who listens at {sink.address} does not hold the secret of the ingress")
    await call.write(pb.TokenBatch(proof=sink.secret.proof(b"target", nonce, told.get(NONCE, b""))))
    return call
