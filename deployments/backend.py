"""The API's Backend over Serve handles: runs of tokens, and what replicas say of themselves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from api.backend import Starting
from api.open_requests import OpenRequests
from api.single_flight import SingleFlight
from api.survival import Recovery, survive
from api.trace import Track
from deployments.cards import Cards, Info, Recall
from deployments.handles import Handle, await_reply, broadcast, open_requests
from deployments.loading import awaited
from deployments.texts import load_text
from link.counts import replica_name
from link.discovery import PoolMember
from link.liveness import Liveness
from link.token_sink import SinkAddress, TokenSink
from protocol.errors import UnknownModel
from protocol.request import GenerateRequest, TokenRun


def nothing(model: str) -> Info | None:
    """Where no description is kept."""
    return None


class ServeBackend:
    """The API's Backend over Serve handles.

    tokenizers: checkpoint directory per model id. most: what is answered at once, by model id; others have no bound.
    recall: the last description that a model gave any ingress of itself; may block. clock: of what is kept of it.
    Handles are configured once, because each new one starts a router. Must be created on the event loop that uses it.
    """

    def __init__(
        self,
        handles: Mapping[str, Handle],
        tokenizers: Mapping[str, str],
        sink: TokenSink,
        sink_address: SinkAddress,
        pool: Handle | None = None,
        silence_s: float = 20.0,
        recovery: Recovery | None = None,
        most: Mapping[str, int] | None = None,
        recall: Recall = nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        most = most or {}
        self._texts = {model: load_text(model, path, most.get(model)) for model, path in tokenizers.items()}
        # Over Serve's gRPC a call costs half of what it costs through the object store (Ray 2.60).
        self._calls = {
            model: handle.options(method_name="generate", _by_reference=False) for model, handle in handles.items()
        }
        self._sink, self._sink_address = sink, sink_address
        self._recovery = recovery or Recovery()
        self._liveness = {
            model: Liveness(partial(open_requests, handle), silence_s, self._recovery.within_s)
            for model, handle in handles.items()
        }
        self._describe = {model: handle.options(method_name="describe") for model, handle in handles.items()}
        self._handles = handles
        self._pool = pool
        self.names = tuple(handles)
        cards = Cards({model: partial(self._ask, model) for model in handles}, self._texts, recall, self._start, clock)
        self.card, self.ready, self.starting = cards.card, cards.ready, cards.starting
        # All replicas are asked for each, whoever asks: Prometheus, the page, operators, and callers over gRPC.
        self.stats = SingleFlight(self._stats)
        self.router = SingleFlight(partial(self._broadcast, "router"))
        self.token_counts = SingleFlight(self._token_counts)
        self.open = OpenRequests()

    def warm_up(self) -> None:
        """Starts what the first chat would have to wait for."""
        for text in self._texts.values():
            text.warm_up()

    def _start(self, model: str) -> Starting:
        return awaited(self._handles[model].deployment_name, time.time())

    async def _ask(self, model: str) -> Info:
        info: Info = await self._describe[model].remote()
        return info

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        runs = survive(partial(self._runs, model, self._call(model)), request, self._recovery)
        return self.open.watch(request.request_id, runs)

    async def complete(self, model: str, request: GenerateRequest) -> TokenRun:
        return await self.open.run(request.request_id, self._complete(model, request))

    async def _complete(self, model: str, request: GenerateRequest) -> TokenRun:
        """Several runs come if a replica was stopped in between."""
        async with aclosing(survive(partial(self._whole, model, self._call(model)), request, self._recovery)) as runs:
            parts = [run async for run in runs]
        token_ids = tuple(token for part in parts for token in part.token_ids)
        logprobs = tuple(told for part in parts for told in part.logprobs)
        told: dict[str, Any] = {
            "logprobs": logprobs,
            "sources": tuple(source for part in parts for source in part.sources),
            "of_prompt": parts[0].of_prompt,
        }
        return replace(parts[-1], index=0, token_ids=token_ids, num_cached=parts[0].num_cached, **told)

    async def _whole(self, model: str, call: Handle, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        """The reply to the call alone."""
        yield await self._answer(model, call, request)

    async def _answer(self, model: str, call: Handle, request: GenerateRequest, *sink: SinkAddress) -> TokenRun:
        """The reply to the call. Raises NotReady if its replica stops answering."""
        async with self._liveness[model].watch(request.request_id):
            return await await_reply(call.remote(request, *sink))

    def _call(self, model: str) -> Handle:
        if model not in self.names:
            raise UnknownModel(f"model {model!r} does not exist; this server has {', '.join(self.names)}")
        return self._calls[model]

    async def _runs(self, model: str, call: Handle, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        """The runs that arrive at the sink, then the reply to the call, which repeats all tokens."""
        with self._sink.open(request.request_id) as inbox:
            end = asyncio.create_task(self._answer(model, call, request, self._sink_address))
            end.add_done_callback(inbox.put_nowait)
            try:
                while (run := await inbox.get()) is not end:
                    yield run
                yield end.result()
            finally:
                end.cancel()

    async def _stats(self) -> Mapping[str, Any]:
        targets, members = await asyncio.gather(self._broadcast("stats"), self._members())
        return {"targets": targets, "pool": [_counts(member) for member in members]}

    async def _members(self) -> list[PoolMember]:
        return await broadcast(self._pool, "describe") if self._pool else []

    async def _token_counts(self) -> Mapping[str, Any]:
        told = await self._broadcast("token_counts")
        return {model: _summed(replicas) for model, replicas in told.items()}

    async def trace(self, num_rounds: int) -> tuple[Sequence[Track], Sequence[Track]]:
        info = await self._broadcast("trace", num_rounds)
        pool = await broadcast(self._pool, "trace") if self._pool else []
        targets = [track for model, tracks in info.items() for track in _number_tracks(model, tracks)]
        return targets, _number_tracks("pool", pool)

    async def _broadcast(self, method: str, *args: int) -> dict[str, list[Any]]:
        """The results of a method of all replicas, by target."""
        info = await asyncio.gather(*(broadcast(handle, method, *args) for handle in self._handles.values()))
        return dict(zip(self.names, info, strict=True))


def _counts(member: PoolMember) -> dict[str, Any]:
    steps = {"steps_run": member.steps and asdict(member.steps)}
    return asdict(member.stats) | steps | {"replica": replica_name(member.incarnation)}


def _summed(replicas: Sequence[tuple[str, Mapping[int, int]]]) -> dict[str, Any]:
    """Over the replicas of one target, which have one vocabulary."""
    counts: Counter[int] = Counter()
    for _, own in replicas:
        counts.update(own)
    return {"vocabulary_hash": replicas[0][0] if replicas else None, "counts": dict(sorted(counts.items()))}


def _number_tracks(name: str, tracks: Sequence[Track]) -> list[Track]:
    return [replace(track, name=f"{name} {index}") for index, track in enumerate(tracks)]
