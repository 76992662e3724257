"""The requests of a chaos run: texts, chats, grammars and tools, streamed over both protocols; some are cancelled."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import httpx

from bench.client import events
from deployments.app import APP_NAME
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc

KINDS = ("text", "text", "text", "text", "text", "chat", "chat", "grammar", "grammar", "tools")
METADATA = (("application", APP_NAME),)
CANCELLED_SHARE = 0.1
LIST = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "minItems": 4, "maxItems": 12}
SIGNATURE = r"def [a-z_]{3,12}\(([a-z]{1,8}(, [a-z]{1,8}){0,4})?\):"
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True)
class Ask:
    """One text that can be asked for again and again. fields: of the body over HTTP."""

    number: int
    kind: str
    fields: dict[str, Any] = field(repr=False)

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if "messages" in self.fields else "/v1/completions"

    @property
    def over_grpc(self) -> bool:
        return self.kind in ("text", "chat")


@dataclass(frozen=True)
class Order:
    """One request of the run. cancel_after: pieces behind which its client leaves."""

    ask: Ask
    protocol: str
    cancel_after: int | None = None


@dataclass
class Answer:
    """What came. Moments are those of pieces with tokens, by time.monotonic."""

    token_ids: list[int] = field(default_factory=list, repr=False)
    text: str = field(default="", repr=False)
    calls: str = field(default="", repr=False)
    reason: str | None = None
    moments: list[float] = field(default_factory=list, repr=False)

    def add(self, token_ids: Sequence[int], text: str, reason: str | None, calls: str = "") -> None:
        self.token_ids += token_ids
        self.text, self.calls, self.reason = self.text + text, self.calls + calls, reason or self.reason
        self.moments += [time.monotonic()] if token_ids else []

    def is_as(self, other: Answer) -> bool:
        """Half of a character, at the end of a text, has no text of its own: there the tokens decide."""
        texts = self.text == other.text or "\ufffd" in other.text
        return texts and (self.token_ids, self.calls, self.reason) == (other.token_ids, other.calls, other.reason)

    def begins(self, other: Answer) -> bool:
        return other.token_ids[: len(self.token_ids)] == self.token_ids


class Broken(Exception):
    """The answer did not come to its end."""


class Refused(Exception):
    """The server asks to try again later, before anything of the answer came."""


def asks(models: Sequence[str], prompts: Sequence[str], count: int, rng: random.Random) -> list[Ask]:
    made = []
    for number in range(count):
        model, prompt = models[number % len(models)], prompts[number % len(prompts)][:300]
        fields: dict[str, Any] = {
            "model": model,
            "temperature": 0.8 * ((number // 2 + number // 20) % 2),
            "seed": number,
        }
        fields |= {"max_tokens": rng.randrange(40, 200), "return_token_ids": True}
        kind = KINDS[number // len(models) % len(KINDS)]
        said = {"messages": [{"role": "user", "content": prompt}]} if kind in ("chat", "tools") else {"prompt": prompt}
        made.append(Ask(number, kind, fields | said | _shape(kind, number)))
    return made


def _shape(kind: str, number: int) -> dict[str, Any]:
    if kind == "grammar":
        return {"structured_outputs": {"json": LIST} if number % 2 else {"regex": SIGNATURE}}
    return {"tools": [TOOL]} if kind == "tools" else {"ignore_eos": True}


def orders(made: Sequence[Ask], count: int, rng: random.Random) -> list[Order]:
    chosen = []
    for _ in range(count):
        ask = rng.choice(made)
        cancel = rng.randrange(1, 4) if rng.random() < CANCELLED_SHARE else None
        chosen.append(Order(ask, rng.choice(("http", "grpc")) if ask.over_grpc else "http", cancel))
    return chosen


class Asker:
    """A client of both protocols, without retries of its own."""

    def __init__(self, url: str, grpc_port: int, limit_s: float) -> None:
        self._limit_s = limit_s
        self._http = httpx.AsyncClient(base_url=url, timeout=limit_s, trust_env=False)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}", (("grpc.enable_http_proxy", 0),))
        self._stub: Any = pb_grpc.InferenceStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._http.aclose()
        await self._channel.close()

    async def whole(self, ask: Ask) -> Answer:
        response = await self._http.post(ask.path, json=ask.fields)
        response.raise_for_status()
        return _add(Answer(), response.json())

    async def stream(self, order: Order) -> Answer:
        """Raises Broken or Refused."""
        answer, num_pieces = Answer(), 0
        pieces = self._over_http(order.ask, answer) if order.protocol == "http" else self._over_grpc(order.ask, answer)
        try:
            async with aclosing(pieces):
                async for _ in pieces:
                    num_pieces += 1
                    if num_pieces == order.cancel_after:
                        break
        except (httpx.HTTPError, ValueError, grpc.RpcError) as error:
            refused = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
            kind = Refused if refused and not answer.token_ids else Broken
            raise kind(f"{type(error).__name__}: {str(error)[:300]}") from error
        return answer

    async def _over_http(self, ask: Ask, answer: Answer) -> AsyncGenerator[None, None]:
        body = ask.fields | {"stream": True}
        async with self._http.stream("POST", ask.path, json=body) as response:
            if response.status_code != 200:
                told = f"{response.status_code}: {(await response.aread())[:200]!r}"
                raise Refused(told) if "retry-after" in response.headers else Broken(told)
            async with aclosing(events(response)) as chunks:
                async for chunk in chunks:
                    _add(answer, chunk)
                    yield

    async def _over_grpc(self, ask: Ask, answer: Answer) -> AsyncGenerator[None, None]:
        call = self._call(ask)
        try:
            async for message in call:
                answer.add(message.token_ids, message.text, REASONS.get(message.finish_reason))
                yield
        finally:
            call.cancel()

    def _call(self, ask: Ask) -> Any:
        names = ("model", "temperature", "seed", "max_tokens", "ignore_eos")
        options = {name: ask.fields[name] for name in names if name in ask.fields}
        request = pb.GenerateRequest(**options)
        settings = {"metadata": METADATA, "timeout": self._limit_s}
        if ask.kind == "text":
            request.text = ask.fields["prompt"]
            return self._stub.Generate(request, **settings)
        messages = [pb.ChatMessage(**message) for message in ask.fields["messages"]]
        return self._stub.Chat(pb.ChatRequest(messages=messages, options=request), **settings)


def _add(answer: Answer, body: dict[str, Any]) -> Answer:
    """What a chunk, or a whole answer, brings."""
    for choice in body["choices"]:
        part = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or part.get("content") or ""
        called = [call["function"] for call in part.get("tool_calls") or ()]
        calls = "".join(f"{one.get('name') or ''}{one.get('arguments') or ''}" for one in called)
        answer.add(choice.get("token_ids") or (), text, choice["finish_reason"], calls)
    return answer


def texts_of(made: Sequence[Ask]) -> list[Ask]:
    """Those that the plain loop can be asked for as they are."""
    return [ask for ask in made if ask.kind == "text"]
