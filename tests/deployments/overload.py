"""Requests that come when they come, whatever became of those before: how soon each begins, or is refused."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import httpx

from bench.client import events
from deployments.app import APP_NAME
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc

LIMIT_S = 120.0
LENGTHS = 128, 257  # so long that the model is what is short, not the way to it


@dataclass
class Told:
    """What one request was told. first_s: until its first token. refused_s: until it was refused."""

    model: str
    protocol: str
    first_s: float | None = None
    whole_s: float | None = None
    refused_s: float | None = None
    retry_after: str | None = None
    failed: str | None = None


class Caller:
    """Streams over both protocols, each request on its own."""

    def __init__(self, url: str, grpc_port: int, prompts: Sequence[str], seed: int) -> None:
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits, trust_env=False)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}", (("grpc.enable_http_proxy", 0),))
        self._stub: Any = pb_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]
        self._prompts, self._rng = prompts, random.Random(seed)

    async def close(self) -> None:
        await self._http.aclose()
        await self._channel.close()

    async def ask(self, model: str, protocol: str) -> Told:
        told, sent_s = Told(model, protocol), time.perf_counter()
        fields = {"model": model, "max_tokens": self._rng.randrange(*LENGTHS), "ignore_eos": True, "temperature": 0.8}
        fields |= {"seed": self._rng.getrandbits(32)}
        prompt = self._rng.choice(self._prompts)[:200]
        try:
            await (self._http_call if protocol == "http" else self._grpc_call)(fields, prompt, told, sent_s)
        except (httpx.HTTPError, ValueError, grpc.RpcError) as error:
            told.failed = f"{type(error).__name__}: {str(error)[:200]}"
        return told

    async def at_a_rate(self, rate: float, count: int, models: Sequence[str]) -> list[Told]:
        """Poisson arrivals, over both protocols, of models in turn."""
        tasks = []
        for number in range(count):
            protocol = ("http", "grpc")[number // len(models) % 2]
            tasks.append(asyncio.create_task(self.ask(models[number % len(models)], protocol)))
            await asyncio.sleep(self._rng.expovariate(rate))
        return list(await asyncio.gather(*tasks))

    async def in_a_loop(self, under_way: int, count: int, model: str) -> float:
        """Requests a second with so many under way, the next as soon as one has ended."""
        waiting = iter(range(count))

        async def place() -> None:
            for number in waiting:
                told = await self.ask(model, ("http", "grpc")[number % 2])
                assert told.whole_s is not None, told

        began_s = time.perf_counter()
        await asyncio.gather(*(place() for _ in range(under_way)))
        return count / (time.perf_counter() - began_s)

    async def _http_call(self, fields: dict[str, Any], prompt: str, told: Told, sent_s: float) -> None:
        body = fields | {"prompt": prompt, "stream": True}
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                await response.aread()
                told.refused_s, told.retry_after = _since(sent_s), response.headers.get("retry-after")
                return
            response.raise_for_status()
            async with aclosing(events(response)) as chunks:
                async for _ in chunks:
                    told.first_s = told.first_s or _since(sent_s)
        told.whole_s = _since(sent_s)

    async def _grpc_call(self, fields: dict[str, Any], prompt: str, told: Told, sent_s: float) -> None:
        call = self._stub.Generate(pb.GenerateRequest(text=prompt, **fields), metadata=(("application", APP_NAME),))
        try:
            async for _ in call:
                told.first_s = told.first_s or _since(sent_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            told.refused_s = _since(sent_s)
            told.retry_after = str(error.details()).partition("; try again in ")[2].removesuffix(" s")
            return
        told.whole_s = _since(sent_s)


def _since(sent_s: float) -> float:
    return time.perf_counter() - sent_s
