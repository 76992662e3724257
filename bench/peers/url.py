"""Any OpenAI-compatible server behind the seam: `/v1/completions`, token ids in, a stream out.

Times are those of the chunks as they reach this process. Token ids are asked for (`return_token_ids`, as vLLM and
DraftPool know it); from a server that does not send them, tokens are counted by the running usage of the stream, or
one a chunk, and the identical-output rate is not to be had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx

from bench.cells import Cell, CellOutcome, Timed, TokenIds, Unavailable
from bench.client import events

TIMEOUT_S = 600.0


class UrlEngine:
    """The server decides on batch, dtype and speculation; cell.batch requests are kept in flight."""

    shares_noise = False

    def __init__(self, url: str, model: str | None = None) -> None:
        self.name = url
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = self.version = model or ""

    def open(self) -> None:
        try:
            reply = httpx.get(f"{self._url}/v1/models", timeout=10.0, trust_env=False)
            names = [card["id"] for card in reply.raise_for_status().json()["data"]]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise Unavailable(f"{self._url}/v1/models does not answer as OpenAI's does: {error}") from None
        self._model = self.version = self._model or names[0]
        if self._model not in names:
            raise Unavailable(f"it serves {', '.join(names)}, not {self._model}")

    def close(self) -> None:
        pass

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        try:
            return CellOutcome(tuple(asyncio.run(self._run(cell, prompts, max_tokens))))
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"a request failed: {error or type(error).__name__}") from None

    async def _run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> list[Timed]:
        free = asyncio.Semaphore(cell.batch)
        limits = httpx.Limits(max_connections=cell.batch)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:

            async def one(seed: int, prompt: TokenIds, start: float) -> Timed:
                async with free:
                    return await self._complete(client, self._body(cell, seed, prompt, max_tokens), start)

            start = time.perf_counter()
            return await asyncio.gather(*(one(seed, prompt, start) for seed, prompt in enumerate(prompts)))

    def _body(self, cell: Cell, seed: int, prompt: TokenIds, max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": cell.temperature,
            "seed": seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "return_token_ids": True,
        }

    async def _complete(self, client: httpx.AsyncClient, body: dict[str, Any], start: float) -> Timed:
        token_ids: list[int] = []
        arrived: list[float] = []
        speculation: dict[str, Any] = {}
        async with client.stream("POST", f"{self._url}/v1/completions", json=body) as reply:
            if reply.status_code != httpx.codes.OK:
                raise Unavailable(f"it answered {reply.status_code}: {(await reply.aread()).decode()[:200]}")
            async for event in events(reply):
                new = _new_tokens(event, len(arrived))
                token_ids += _token_ids(event)
                arrived += [time.perf_counter()] * new
                speculation = (event.get("metrics") or {}).get("speculative_decoding") or speculation
        if not arrived:
            raise Unavailable("a stream ended without a token")
        verified, drafted = _rounds(speculation)
        return Timed(tuple(token_ids), tuple(arrived), start, verified, drafted)


def _token_ids(event: dict[str, Any]) -> list[int]:
    return [token for choice in event["choices"] for token in choice.get("token_ids") or ()]


def _new_tokens(event: dict[str, Any], seen: int) -> int:
    """How many tokens a chunk brought: by its token ids, else by the running usage, else by its text."""
    if not event["choices"]:
        return 0
    if any(choice.get("token_ids") is not None for choice in event["choices"]):
        return len(_token_ids(event))
    if event.get("usage"):
        return max(0, int(event["usage"]["completion_tokens"]) - seen)
    return int(any(choice.get("text") for choice in event["choices"]))


def _rounds(speculation: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """From vLLM's histogram of accepted tokens per round."""
    histogram = speculation.get("acceptance_histogram")
    if histogram is None:
        return (), None
    sizes = tuple(accepted + 1 for accepted, count in enumerate(histogram) for _ in range(count))
    return sizes, speculation["num_draft_tokens"]
