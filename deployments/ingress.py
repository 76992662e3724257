"""The door: OpenAI over HTTP and gRPC on one Serve deployment, in front of one handle per target.

All that a request means is in api/, which knows no Ray. Here are only the handles: a stream of runs out
of each, what replicas tell of themselves, and Ray's errors in our own words.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp
from transformers import PreTrainedTokenizerFast

from api import rpc
from api.backend import ModelCard, max_token_bytes
from api.control import ControlTokens
from api.http import create_app
from api.runs import check_runs
from api.trace import Track
from deployments.config import HttpConfig, IngressConfig
from deployments.host import own_host
from deployments.liveness import Census, Liveness, census_of
from link.discovery import serve_discovery
from link.secret import Secret
from link.token_sink import SinkAddress, TokenSink
from model.files import TEXT_FILES, resolve
from model.tokenizer import end_token_warning, end_tokens, load_tokenizer
from protocol.errors import DraftPoolError, NotReady, QueueFull, UnknownModel
from protocol.pb import inference_pb2 as pb
from protocol.request import GenerateRequest, TokenRun

DESCRIBE_TIMEOUT_S = 1.0
STATS_TIMEOUT_S = 2.0

# Every thread that encodes keeps 10,000 words of its own for each tokenizer: 5 MiB of short ones, 36 of Chinese. Alone
# asyncio would start four threads more than there are cores. Two, so that a long prompt does not hold up the others.
NUM_TOKENIZER_THREADS = 2

logger = logging.getLogger(__name__)

Handle = DeploymentHandle[Any]


class ServeBackend:
    """tokenizers: checkpoint directory per model id. Handles are configured once: each new one costs a router.

    Made on the event loop that it is used on, whose default threads become those that tokenize.
    """

    def __init__(
        self,
        handles: Mapping[str, Handle],
        tokenizers: Mapping[str, str],
        sink: TokenSink,
        sink_address: SinkAddress,
        pool: Handle | None = None,
        silence_s: float = 20.0,
    ) -> None:
        threads = ThreadPoolExecutor(NUM_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        asyncio.get_running_loop().set_default_executor(threads)
        # Over Serve's own gRPC a call costs half of what it does through the object store (notes of 2.60).
        self._calls = {
            model: handle.options(method_name="generate", _by_reference=False) for model, handle in handles.items()
        }
        self._sink, self._sink_address = sink, sink_address
        self._liveness = {
            model: Liveness(partial(open_requests, handle), silence_s) for model, handle in handles.items()
        }
        self._describe = {model: handle.options(method_name="describe") for model, handle in handles.items()}
        self._handles = handles
        self._pool = pool
        self._pool_members = serve_discovery(pool) if pool is not None else None
        self._tokenizers = {model: load_text(path) for model, path in tokenizers.items()}
        self._control = {model: ControlTokens(tokenizer) for model, tokenizer in self._tokenizers.items()}
        self._max_token_bytes = {model: max_token_bytes(tokenizer) for model, tokenizer in self._tokenizers.items()}
        self._created = int(time.time())
        self._cards: dict[str, ModelCard] = {}
        self.names = tuple(handles)

    async def card(self, model: str) -> ModelCard | None:
        if model not in self._cards:
            await self.ready(model)
        return self._cards.get(model)

    async def ready(self, model: str) -> bool:
        try:
            told = await asyncio.wait_for(self._ask(model), DESCRIBE_TIMEOUT_S)
        except Exception:  # not there, or not there in time: Serve is starting it, or starting it again
            return False
        self._cards[model] = self._made_card(model, told)
        return bool(told["ready"])

    async def _ask(self, model: str) -> Mapping[str, Any]:
        told: Mapping[str, Any] = await self._describe[model].remote()
        return told

    def _made_card(self, model: str, told: Mapping[str, Any]) -> ModelCard:
        return ModelCard(
            id=model,
            max_model_len=told["max_model_len"],
            vocab_size=told["vocab_size"],
            tokenizer=self._tokenizers[model],
            control=self._control[model],
            max_token_bytes=self._max_token_bytes[model],
            eos_token_ids=end_tokens(tuple(told["eos_token_ids"]), self._tokenizers[model]),
            created=self._created,
            max_batch=told["max_batch"],
            exits=tuple(told["exits"]),
            max_draft_length=told["longest_draft"],
        )

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        return check_runs(self._runs(model, self._call(model), request))

    async def complete(self, model: str, request: GenerateRequest) -> TokenRun:
        return await self._answer(model, self._call(model), request)

    async def _answer(self, model: str, call: Handle, request: GenerateRequest, *sink: SinkAddress) -> TokenRun:
        """The end of the call. Raises NotReady when the replica that has it does not answer any more."""
        async with self._liveness[model].of(request.request_id):
            return await answered(call.remote(request, *sink))

    def _call(self, model: str) -> Handle:
        if model not in self.names:
            raise UnknownModel(f"model {model!r} does not exist; this server has {', '.join(self.names)}")
        return self._calls[model]

    async def _runs(self, model: str, call: Handle, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        """What comes to the sink, and at last all of it again with the end of the call."""
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
        pool = [asdict(member.stats) | {"steps_run": member.steps and asdict(member.steps)} for member in members]
        return {"targets": await self._told("stats"), "pool": pool}

    async def router(self) -> Mapping[str, Any]:
        return await self._told("router")

    async def trace(self, num_rounds: int) -> tuple[Sequence[Track], Sequence[Track]]:
        told = await self._told("trace", num_rounds)
        pool = await told_by(self._pool, "trace") if self._pool else []
        targets = [track for model, tracks in told.items() for track in _numbered(model, tracks)]
        return targets, _numbered("pool", pool)

    async def _told(self, method: str, *args: int) -> dict[str, list[Any]]:
        """By target."""
        told = await asyncio.gather(*(told_by(handle, method, *args) for handle in self._handles.values()))
        return dict(zip(self.names, told, strict=True))


def _numbered(name: str, tracks: Sequence[Track]) -> list[Track]:
    return [replace(track, name=f"{name} {index}") for index, track in enumerate(tracks)]


def load_text(path: str) -> PreTrainedTokenizerFast:
    directory = resolve(path, TEXT_FILES)
    tokenizer = load_tokenizer(directory)
    if warning := end_token_warning(directory, tokenizer):
        logger.warning(warning)
    return tokenizer


async def answered(response: Any) -> TokenRun:
    """What a target's `generate` returns, or raises in our words. Cancelling it cancels the call."""
    try:
        answer: TokenRun | DraftPoolError = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as error:
        raise in_our_words(error) from None
    if isinstance(answer, DraftPoolError):
        raise answer
    return answer


async def told_by(handle: Handle, method: str, *args: int) -> list[Any]:
    """What a method of each replica gives that answers in time."""
    try:
        response: Any = handle.broadcast(method, *args)
        answers = await response.results_async(timeout_s=STATS_TIMEOUT_S, return_exceptions=True)
    except Exception:  # no replica is there
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def open_requests(handle: Handle, timeout_s: float) -> Census:
    """Raises where no replica is there. Serve's own `results_async` gives nothing unless all replicas answer."""
    response: Any = handle.broadcast("open_requests")
    results = await response._fetch_replica_results_async()
    return await census_of([result.get_async() for result in results], timeout_s)


def in_our_words(error: Exception) -> Exception:
    """The replica's own error, or what a lost or full replica means to a caller; anything else is a fault."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return in_our_words(cause) if isinstance(cause, Exception) and cause is not error else error
    if isinstance(error, BackPressureError):
        return QueueFull("too many requests are queued; try again later")
    if isinstance(error, RayActorError | DeploymentUnavailableError):
        return NotReady("the replica that answered was lost; send the request again")
    return error


@serve.deployment(name="ingress")
@serve.ingress()
class Ingress:
    """HTTP routes come from the API's application; Serve's gRPC proxy calls the methods named like the RPCs."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        handles: Mapping[str, Handle],
        tokenizers: Mapping[str, str],
        config: IngressConfig,
        pool: Handle | None = None,
        http: HttpConfig | None = None,
    ) -> None:
        self._http = http or HttpConfig()
        secret = Secret.of(os.environ)
        self._sink = TokenSink(secret)
        address = await self._sink.start(own_host(config.host), config.ports)
        sink_address = SinkAddress(address, config.join_ms, secret)
        self._backend = ServeBackend(handles, tokenizers, self._sink, sink_address, pool, config.silence_s)

    async def __del__(self) -> None:
        await self._sink.stop()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(
            self._backend,
            echo_request_id=False,  # Serve's proxy echoes it
            request_timeout_s=self._http.request_timeout_s,
            cors_origins=self._http.cors_origins,
        )

    async def Generate(
        self, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async with aclosing(rpc.generate(self._backend, request, grpc_context)) as responses:
            async for response in responses:
                yield response

    async def ListModels(
        self, request: pb.ListModelsRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListModelsResponse:
        return await rpc.list_models(self._backend, request, grpc_context)
