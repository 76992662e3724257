"""A client of an OpenAI-compatible server in a closed loop: so many requests under way, whatever ends followed by the
next.

For load tests with arrival rates take aiperf or guidellm (docs/operations.md); this one asks for the text too, and ends
a measurement at the first failed request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

DONE = "data: [DONE]"
TIMEOUT_S = 120.0


class RequestFailed(RuntimeError):
    """With another load than was asked for, nothing is measured."""


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """Times by the clock. first_s, end_s: of the first token and the last; the same where it came whole."""

    model: str
    sent_s: float
    first_s: float
    end_s: float
    num_tokens: int
    text: str = field(repr=False)

    @property
    def decoding_rate(self) -> float:
        """Tokens per second behind the first one, of a stream; 0 for an answer that came whole."""
        return (self.num_tokens - 1) / (self.end_s - self.first_s) if self.end_s > self.first_s else 0.0


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """What all requests have in common; the seed is the prompt's number. prompts: texts, or token ids."""

    prompts: Sequence[str] | Sequence[Sequence[int]]
    max_tokens: int
    temperature: float = 0.0
    stream: bool = True

    def body(self, model: str, number: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "prompt": self.prompts[number % len(self.prompts)],
            "max_tokens": self.max_tokens,
        }
        body |= {"temperature": self.temperature, "seed": number, "ignore_eos": True}
        return body | {"stream": True, "stream_options": {"include_usage": True}} if self.stream else body


class LoadClient:
    def __init__(self, url: str, connections: int) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self.http = httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def complete(self, ask: RequestTemplate, model: str, number: int) -> ServedAnswer:
        """Raises RequestFailed."""
        sent_s, text, num_tokens, first_s, end_s = time.perf_counter(), "", 0, 0.0, 0.0
        try:
            async with self.http.stream("POST", "/v1/completions", json=ask.body(model, number)) as response:
                response.raise_for_status()
                async for event in events(response) if ask.stream else whole(response):
                    if choices := event["choices"]:
                        text, end_s = text + choices[0]["text"], time.perf_counter()
                        first_s = first_s or end_s
                    num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise RequestFailed(f"a request to {model} failed: {error or type(error).__name__}") from error
        if not num_tokens:
            raise RequestFailed(f"a request to {model} gave no token")
        return ServedAnswer(model, sent_s, first_s, end_s, num_tokens, text)

    async def closed_loop(
        self,
        ask: RequestTemplate,
        requests: Iterable[tuple[str, int]],
        concurrency: int,
        on_answer: Callable[[ServedAnswer], None] = lambda answer: None,
    ) -> list[ServedAnswer]:
        """Every (model, number of its prompt), in the order in which they are sent."""
        waiting: Iterator[tuple[int, tuple[str, int]]] = enumerate(requests)
        answers: dict[int, ServedAnswer] = {}

        async def place() -> None:
            for index, (model, number) in waiting:
                answers[index] = await self.complete(ask, model, number)
                on_answer(answers[index])

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(place())
        return [answers[index] for index in sorted(answers)]


async def whole(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The whole answer, as its only chunk."""
    yield json.loads(await response.aread())


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream. Raises ValueError for one that was cut, or holds an error."""
    async for line in response.aiter_lines():
        if line == DONE:
            return
        if line.startswith("data:"):
            event = json.loads(line.removeprefix("data:"))
            if "error" in event:
                raise ValueError(f"its stream holds an error: {event['error']}")
            yield event
    raise ValueError("its stream was cut")
