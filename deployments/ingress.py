"""The door: OpenAI over HTTP and gRPC on one Serve deployment, in front of one handle per target.

All that a request means is in deployments/api, which knows no Ray. Here are only the handles: a stream of runs out
of each, and Ray's errors in our own words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp
from transformers import AutoTokenizer

from deployments.api import rpc
from deployments.api.backend import ModelCard
from deployments.api.http import create_app
from deployments.api.runs import in_order
from protocol.errors import NotReady, QueueFull, UnknownModel
from protocol.pb import inference_pb2 as pb
from protocol.request import GenerateRequest, TokenRun

DESCRIBE_TIMEOUT_S = 5.0


class ServeBackend:
    """tokenizers: checkpoint directory per model id. Handles are configured once: each new one costs a router."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]], tokenizers: Mapping[str, str]) -> None:
        # Over Serve's own gRPC a run costs 0.03 ms, through the object store 0.7 ms (notes of 2.60).
        self._streams = {
            model: handle.options(method_name="generate", stream=True, _by_reference=False)
            for model, handle in handles.items()
        }
        self._describe = {model: handle.options(method_name="describe") for model, handle in handles.items()}
        self._tokenizers = {model: AutoTokenizer.from_pretrained(path) for model, path in tokenizers.items()}
        self._created = int(time.time())
        self._cards: dict[str, ModelCard] = {}

    def models(self) -> Sequence[ModelCard]:
        """All targets once each has told about itself, in the order of the config; none before."""
        return [self._cards[model] for model in self._streams] if len(self._cards) == len(self._streams) else []

    async def ready(self) -> bool:
        return all(await asyncio.gather(*map(self._is_ready, self._describe)))

    async def _is_ready(self, model: str) -> bool:
        try:
            told = await asyncio.wait_for(self._ask(model), DESCRIBE_TIMEOUT_S)
        except Exception:  # not there, or not there in time: Serve is starting it, or starting it again
            return False
        self._cards.setdefault(model, self._card(model, told))
        return bool(told["ready"])

    async def _ask(self, model: str) -> Mapping[str, Any]:
        told: Mapping[str, Any] = await self._describe[model].remote()
        return told

    def _card(self, model: str, told: Mapping[str, Any]) -> ModelCard:
        return ModelCard(
            id=model,
            max_model_len=told["max_model_len"],
            vocab_size=told["vocab_size"],
            tokenizer=self._tokenizers[model],
            eos_token_ids=tuple(told["eos_token_ids"]),
            created=self._created,
        )

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        if model not in self._streams:
            raise UnknownModel(f"model {model!r} does not exist; this server has {', '.join(self._streams)}")
        return in_order(self._runs(model, request))

    async def _runs(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        response: Any = self._streams[model].remote(request)
        finished = False
        try:
            async for run in response:
                finished = run.finish_reason is not None
                yield run
        except (GeneratorExit, asyncio.CancelledError):
            if not finished:
                response.cancel()
            raise
        except Exception as error:
            raise in_our_words(error) from None


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

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]], tokenizers: Mapping[str, str]) -> None:
        self._backend = ServeBackend(handles, tokenizers)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._backend, echo_request_id=False)  # Serve's proxy echoes it

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
