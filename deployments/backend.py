"""The API's Backend over Serve handles: runs of tokens, descriptions of replicas, and Ray's errors in our words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import grpc
import grpc.aio
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle
from transformers import PreTrainedTokenizerFast

from api.backend import ModelCard, max_token_bytes
from api.control import ControlTokens
from api.open_requests import OpenRequests
from api.places import Places
from api.rendering import Renderer
from api.survival import Recovery, survive
from api.trace import Track
from deployments.loading import stages
from link.counts import replica_name
from link.discovery import PoolMember, serve_discovery
from link.liveness import Census, Liveness, take_census
from link.token_sink import SinkAddress, TokenSink
from model.files import TEXT_FILES, resolve
from model.tokenizer import end_token_warning, end_tokens, load_tokenizer
from model.vocabulary import Spellings
from protocol.errors import DraftPoolError, NotReady, QueueFull, UnknownModel
from protocol.request import GenerateRequest, TokenRun

DESCRIBE_TIMEOUT_S = 1.0
STATS_TIMEOUT_S = 2.0

# Every thread that encodes keeps a cache of 10,000 words per tokenizer: 5 MiB for short words, 36 MiB for Chinese.
# asyncio's default is four threads more than there are cores. Two of each model, so that a long prompt does not delay
# the others, and no model's prompts those of another.
NUM_TOKENIZER_THREADS = 2

# How a call ends whose connection broke. A replica's own errors come as its answer.
BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})
LOST = RayActorError | DeploymentUnavailableError | ReplicaUnavailableError | RequestCancelledError

logger = logging.getLogger(__name__)

Handle = DeploymentHandle[Any]
AskOthers = Callable[[str], Awaitable[Sequence[Mapping[str, Any] | None]]]


async def nobody(model: str) -> Sequence[Mapping[str, Any] | None]:
    """The other ingresses, where there is one alone."""
    return ()


class ServeBackend:
    """The API's Backend over Serve handles.

    tokenizers: checkpoint directory per model id. most: what is answered at once, by model id; others have no bound.
    ask_others: the descriptions of a model that other ingresses have.
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
        ask_others: AskOthers = nobody,
    ) -> None:
        self._places = {model: Places((most or {}).get(model)) for model in tokenizers}
        self._threads = {
            model: ThreadPoolExecutor(NUM_TOKENIZER_THREADS, thread_name_prefix=f"tokenizer-{model}")
            for model in tokenizers
        }
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
        self._pool_members = serve_discovery(pool) if pool is not None else None
        self._tokenizers = {model: load_tokenizer_of(path) for model, path in tokenizers.items()}
        self._control = {model: ControlTokens(tokenizer) for model, tokenizer in self._tokenizers.items()}
        self._renderers = {model: Renderer() for model in tokenizers}
        self._spellings = {model: Spellings(tokenizer) for model, tokenizer in self._tokenizers.items()}
        self._max_token_bytes = {model: max_token_bytes(tokenizer) for model, tokenizer in self._tokenizers.items()}
        self._created = int(time.time())
        self._cards: dict[str, ModelCard] = {}
        self._descriptions: dict[str, Mapping[str, Any]] = {}
        self._ask_others = ask_others
        self.names = tuple(handles)
        self.open = OpenRequests()

    def warm_up(self) -> None:
        """Starts what the first chat would have to wait for."""
        for model, renderer in self._renderers.items():
            if self._tokenizers[model].chat_template:
                renderer.start()

    async def card(self, model: str) -> ModelCard | None:
        """Of a target that is away other ingresses may know: requests then wait for it here as they do there."""
        if model not in self._cards and not await self.ready(model) and model not in self._cards:
            for info in await self._ask_others(model):
                if info is not None:
                    self._learn(model, info)
        return self._cards.get(model)

    def description(self, model: str) -> Mapping[str, Any] | None:
        """The last one that a target gave of itself."""
        return self._descriptions.get(model)

    async def ready(self, model: str) -> bool:
        try:
            info = await asyncio.wait_for(self._ask(model), DESCRIBE_TIMEOUT_S)
        except Exception:  # no answer in time: Serve is starting or restarting it
            return False
        self._learn(model, info)
        return bool(info["ready"])

    async def loading(self, model: str) -> str:
        deployment = self._handles[model].deployment_name
        found = [stage for stage in await asyncio.to_thread(stages) if stage.deployment == deployment]
        return ", ".join(stage.progress for stage in found)

    def _learn(self, model: str, info: Mapping[str, Any]) -> None:
        self._descriptions[model], self._cards[model] = info, self._make_card(model, info)

    async def _ask(self, model: str) -> Mapping[str, Any]:
        info: Mapping[str, Any] = await self._describe[model].remote()
        return info

    def _make_card(self, model: str, info: Mapping[str, Any]) -> ModelCard:
        return ModelCard(
            id=model,
            max_model_len=info["max_model_len"],
            vocab_size=info["vocab_size"],
            tokenizer=self._tokenizers[model],
            control=self._control[model],
            max_token_bytes=self._max_token_bytes[model],
            eos_token_ids=end_tokens(tuple(info["eos_token_ids"]), self._tokenizers[model]),
            created=self._created,
            max_batch=info["max_batch"],
            spellings=self._spellings[model],
            exits=tuple(info["exits"]),
            max_draft_length=info["longest_draft"],
            renderer=self._renderers[model],
            places=self._places[model],
            threads=self._threads[model],
        )

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        runs = survive(partial(self._runs, model, self._call(model)), request, self._recovery)
        return self.open.watch(request.request_id, runs)

    async def complete(self, model: str, request: GenerateRequest) -> TokenRun:
        return await self.open.run(request.request_id, self._complete(model, request))

    async def _complete(self, model: str, request: GenerateRequest) -> TokenRun:
        """Several runs come where a replica was stopped in between."""
        async with aclosing(survive(partial(self._whole, model, self._call(model)), request, self._recovery)) as runs:
            parts = [run async for run in runs]
        token_ids = tuple(token for part in parts for token in part.token_ids)
        logprobs = tuple(told for part in parts for told in part.logprobs)
        told: dict[str, Any] = {
            "logprobs": logprobs,
            "sources": tuple(source for part in parts for source in part.sources),
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

    async def stats(self) -> Mapping[str, Any]:
        members = await self._pool_members() if self._pool_members else ()
        return {"targets": await self._broadcast("stats"), "pool": [_counts(member) for member in members]}

    async def router(self) -> Mapping[str, Any]:
        return await self._broadcast("router")

    async def token_counts(self) -> Mapping[str, Any]:
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


def load_tokenizer_of(path: str) -> PreTrainedTokenizerFast:
    directory = resolve(path, TEXT_FILES)
    tokenizer = load_tokenizer(directory)
    if warning := end_token_warning(directory, tokenizer):
        logger.warning(warning)
    return tokenizer


async def await_reply(response: Any) -> TokenRun:
    """The reply of a target's `generate`; raises its translated error. Cancelling the coroutine cancels the call.

    A call that somebody else has cancelled is lost, for CancelledError would end our caller without a word.
    """
    try:
        answer: TokenRun | DraftPoolError = await response
    except asyncio.CancelledError:
        response.cancel()
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise NotReady("the call was cancelled at the replica") from None
    except Exception as error:
        raise translate_error(error) from None
    if isinstance(answer, DraftPoolError):
        raise answer
    return answer


async def broadcast(handle: Handle, method: str, *args: int | str) -> list[Any]:
    """The results of a method of all replicas, from those that answer in time."""
    try:
        response: Any = handle.broadcast(method, *args)
        answers = await response.results_async(timeout_s=STATS_TIMEOUT_S, return_exceptions=True)
    except Exception:  # no replica is there
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def open_requests(handle: Handle, timeout_s: float) -> Census:
    """Asks all replicas for their open requests. Without replicas there are none.

    Serve's `results_async` cannot be used: it returns nothing unless all replicas answer.
    """
    response: Any = handle.broadcast("open_requests")
    try:
        results = await response._fetch_replica_results_async()
    except DeploymentUnavailableError:
        return Census()
    return await take_census([result.get_async() for result in results], timeout_s)


def translate_error(error: Exception) -> Exception:
    """The replica's own error, or the API's error for a lost or full replica. Others are returned unchanged."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return translate_error(cause) if isinstance(cause, Exception) and cause is not error else error
    if isinstance(error, BackPressureError):
        return QueueFull("too many requests are queued")
    if isinstance(error, LOST) or (isinstance(error, grpc.aio.AioRpcError) and error.code() in BROKEN):
        return NotReady("the replica that had the request was lost")
    return error
