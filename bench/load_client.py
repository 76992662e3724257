"""One request to an OpenAI-compatible server, with its times; and a whole schedule of them.

Times count from when a request was due, not from when the client got around to sending it: a server that stalls
must not look better for holding the client up. In a closed loop a request is due when its place is free.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.arrivals import Arrival

DONE = "data: [DONE]"
Send = Callable[[Arrival], Awaitable["Answer"]]


@dataclass(frozen=True, slots=True)
class Ask:
    """What every request of a run has in common. Its seed is `seed` plus the number of its prompt."""

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = True
    stream: bool = True

    def body(self, model: str, prompt: str, number: int) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": self.max_tokens, "temperature": self.temperature}
        body |= {"seed": self.seed + number, "ignore_eos": self.ignore_eos}
        return body | {"stream": True, "stream_options": {"include_usage": True}} if self.stream else body


@dataclass(slots=True)
class Answer:
    """What came back, by the clock: first_s of the first token, last_s of the last; error: its kind, else None."""

    text: str = field(default="", repr=False)
    num_tokens: int = 0
    num_rounds: int = 0
    num_accepted: int = 0
    first_s: float | None = None
    last_s: float | None = None
    error: str | None = None

    def take(self, event: Mapping[str, Any], now_s: float) -> None:
        """A chunk of a stream, or a whole answer."""
        for choice in event["choices"]:
            self.text += choice["text"]
            self.last_s = now_s
        if usage := event.get("usage"):
            self.num_tokens = usage["completion_tokens"]
        counts = (event.get("metrics") or {}).get("speculative_decoding") or {}
        self.num_rounds = counts.get("num_spec_steps", 0)
        self.num_accepted = counts.get("num_accepted_draft_tokens", 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request, in seconds of the run's clock. first_s is None where the answer came whole, or not at all."""

    arrival: Arrival
    due_s: float
    sent_s: float
    first_s: float | None
    end_s: float
    num_tokens: int
    num_rounds: int = 0
    num_accepted: int = 0
    error: str | None = None
    text: str = field(default="", repr=False)


class Client:
    """Bound to one server. Errors are kinds, never texts: http_429, timeout, connection, event, cut, malformed."""

    def __init__(self, url: str, prompts: Sequence[str], ask: Ask, *, connections: int, timeout_s: float) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout_s, trust_env=False)
        self._prompts = prompts
        self._ask = ask

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def models(self) -> list[str]:
        """Raises httpx.HTTPError when the server does not answer, or answers with an error."""
        response = await self._http.get("/v1/models")
        return [model["id"] for model in response.raise_for_status().json()["data"]]

    async def send(self, arrival: Arrival) -> Answer:
        body = self._ask.body(arrival.model, self._prompts[arrival.prompt], arrival.prompt)
        answer = Answer()
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                answer.error = await self._read(response, answer)
        except httpx.TimeoutException:
            answer.error = "timeout"
        except httpx.ConnectError:
            answer.error = "connection"
        except httpx.HTTPError:
            answer.error = "cut"
        except (ValueError, LookupError, TypeError):
            answer.error = "malformed"
        return answer

    async def _read(self, response: httpx.Response, answer: Answer) -> str | None:
        if response.status_code != 200:
            return f"http_{response.status_code}"
        if not self._ask.stream:
            answer.take(json.loads(await response.aread()), time.perf_counter())
            return None if answer.num_tokens else "malformed"
        return await read_stream(response, answer)


async def read_stream(response: httpx.Response, answer: Answer) -> str | None:
    """The kind of error that the stream ended with."""
    async for line in response.aiter_lines():
        if line == DONE:
            return None if answer.num_tokens else "malformed"
        if line.startswith("data:"):
            event, now_s = json.loads(line.removeprefix("data:")), time.perf_counter()
            if "error" in event:
                return "event"
            answer.take(event, now_s)
            if answer.first_s is None:
                answer.first_s = answer.last_s
    return "cut"


async def drive(
    schedule: Sequence[Arrival],
    send: Send,
    max_in_flight: int,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Sends everything, at most max_in_flight at once and in the order of the schedule, and waits for all answers.

    on_outcome sees each as it ends.
    """
    places, began = asyncio.Semaphore(max_in_flight), time.perf_counter()

    async def one(arrival: Arrival) -> Outcome:
        if arrival.due_s is not None:
            await asyncio.sleep(began + arrival.due_s - time.perf_counter())
        async with places:
            sent_s = time.perf_counter()
            answer = await send(arrival)
            outcome = _outcome(arrival, answer, began, sent_s)
        on_outcome(outcome)
        return outcome

    return await asyncio.gather(*map(one, schedule))


def _outcome(arrival: Arrival, answer: Answer, began: float, sent_s: float) -> Outcome:
    end_s = time.perf_counter() if answer.last_s is None else answer.last_s
    return Outcome(
        arrival=arrival,
        due_s=sent_s - began if arrival.due_s is None else arrival.due_s,
        sent_s=sent_s - began,
        first_s=None if answer.first_s is None else answer.first_s - began,
        end_s=end_s - began,
        num_tokens=answer.num_tokens,
        num_rounds=answer.num_rounds,
        num_accepted=answer.num_accepted,
        error=answer.error,
        text=answer.text,
    )
