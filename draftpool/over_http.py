"""The transports over HTTP: OpenAI's routes by httpx. What does not wait is shared by both."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from draftpool.errors import ConnectionLost, Refused, ServerFault, event_error, http_error, retry_after
from draftpool.transport import Server
from draftpool.values import Acceptance, Ask, Completion, Delta, Model, Usage, completion_of
from protocol.errors import InvalidRequest, NotReady, TimedOut
from protocol.plan import Speculation
from protocol.request import FinishReason

TIME_LIMIT = "x-request-timeout-seconds"
GRACE_S = 1.0  # how much longer than the server itself a client waits for its error

Json = dict[str, Any]


class HttpTransport:
    def __init__(self, server: Server) -> None:
        self._http = httpx.Client(**_settings(server))

    def complete(self, ask: Ask, limit_s: float | None) -> Completion:
        with _translated():
            return _completion(_checked(self._http.send(self._request(ask, limit_s, stream=False))))

    def stream(self, ask: Ask, limit_s: float | None) -> Generator[Delta, None, None]:
        events = _Events()
        with _translated():
            response = self._http.send(self._request(ask, limit_s, stream=True), stream=True)
            try:
                if response.status_code != 200:
                    response.read()
                    _checked(response)
                for line in response.iter_lines():
                    if delta := events.push(line):
                        yield delta
                events.end()
            finally:
                response.close()

    def models(self, limit_s: float | None) -> tuple[Model, ...]:
        with _translated():
            return _models(_checked(self._http.send(_listing(self._http.build_request, limit_s))))

    def close(self) -> None:
        self._http.close()

    def _request(self, ask: Ask, limit_s: float | None, *, stream: bool) -> httpx.Request:
        return _asking(self._http.build_request, ask, limit_s, stream=stream)


class AsyncHttpTransport:
    def __init__(self, server: Server) -> None:
        self._http = httpx.AsyncClient(**_settings(server))

    async def complete(self, ask: Ask, limit_s: float | None) -> Completion:
        with _translated():
            return _completion(_checked(await self._http.send(self._request(ask, limit_s, stream=False))))

    async def stream(self, ask: Ask, limit_s: float | None) -> AsyncGenerator[Delta, None]:
        events = _Events()
        with _translated():
            response = await self._http.send(self._request(ask, limit_s, stream=True), stream=True)
            try:
                if response.status_code != 200:
                    await response.aread()
                    _checked(response)
                async for line in response.aiter_lines():
                    if delta := events.push(line):
                        yield delta
                events.end()
            finally:
                await response.aclose()

    async def models(self, limit_s: float | None) -> tuple[Model, ...]:
        with _translated():
            return _models(_checked(await self._http.send(_listing(self._http.build_request, limit_s))))

    async def close(self) -> None:
        await self._http.aclose()

    def _request(self, ask: Ask, limit_s: float | None, *, stream: bool) -> httpx.Request:
        return _asking(self._http.build_request, ask, limit_s, stream=stream)


class _Events:
    """Turns the lines of an event stream into deltas. The last one waits for the usage, which follows it."""

    def __init__(self) -> None:
        self._last: Delta | None = None
        self._is_done = False

    def push(self, line: str) -> Delta | None:
        if not line.startswith("data:"):  # a comment, or the end of an event
            return None
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._is_done = True
            return self._last
        event = json.loads(data)
        if "error" in event:
            raise Refused(event_error(event["error"]))
        if not event["choices"]:
            assert self._last is not None
            self._last = replace(self._last, usage=_usage(event), acceptance=_acceptance(event))
            return None
        delta = _delta(event)
        if delta.finish_reason is not None:
            self._last = delta
            return None
        return delta if delta.text or delta.token_ids else None

    def end(self) -> None:
        if not self._is_done or self._last is None:
            raise Refused(ConnectionLost("the stream broke off before its end"))


@contextmanager
def _translated() -> Generator[None, None, None]:
    """Raises Refused in place of what httpx raises, and of what reading an answer of somebody else does."""
    try:
        yield
    except httpx.ConnectError as error:
        raise Refused(NotReady(f"no server answers: {error}")) from None
    except httpx.TimeoutException:
        raise Refused(TimedOut("the server did not answer within the time limit; ask for less, or raise it")) from None
    except httpx.TransportError as error:
        raise Refused(ConnectionLost(f"the answer broke off: {error or type(error).__name__}")) from None
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        raise Refused(ServerFault(f"this is no answer of a DraftPool server: {type(error).__name__}")) from None


def _settings(server: Server) -> Json:
    """Like all that calls a DraftPool server, without a proxy, whatever the environment sets."""
    headers = {} if server.api_key is None else {"authorization": f"Bearer {server.api_key}"}
    return {"base_url": f"{server.scheme}://{server.address}", "headers": headers, "trust_env": False}


def _asking(build: Callable[..., httpx.Request], ask: Ask, limit_s: float | None, *, stream: bool) -> httpx.Request:
    path = "/v1/completions" if ask.messages is None else "/v1/chat/completions"
    try:
        content = json.dumps(_body(ask, stream=stream))
    except (ValueError, TypeError) as error:
        raise Refused(InvalidRequest(f"an option has a wrong type: {error}")) from None
    headers = {"content-type": "application/json"} | ({} if limit_s is None else {TIME_LIMIT: f"{limit_s:.3f}"})
    return build("POST", path, content=content, headers=headers, timeout=_patience(limit_s))


def _listing(build: Callable[..., httpx.Request], limit_s: float | None) -> httpx.Request:
    return build("GET", "/v1/models", timeout=_patience(limit_s))


def _patience(limit_s: float | None) -> float | None:
    return None if limit_s is None else limit_s + GRACE_S


def _body(ask: Ask, *, stream: bool) -> Json:
    text = {"prompt": ask.prompt} if ask.messages is None else {"messages": ask.messages}
    body = {"model": ask.model, **text, **ask.options, "return_token_ids": True}
    if isinstance(asked := body.get("speculation"), Speculation):
        body["speculation"] = {"depth": asked.depth, "length": asked.length} if asked.length else "off"
    return body | {"stream": True, "stream_options": {"include_usage": True}} if stream else body


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code == 200:
        return response
    try:
        body = response.json()
    except ValueError:
        body = None
    raise Refused(http_error(response.status_code, body), retry_after(response.headers.get("retry-after")))


def _completion(response: httpx.Response) -> Completion:
    body = response.json()
    whole = replace(_delta(body), usage=_usage(body), acceptance=_acceptance(body))
    return completion_of([whole])


def _models(response: httpx.Response) -> tuple[Model, ...]:
    return tuple(Model(card["id"], card["max_model_len"]) for card in response.json()["data"])


def _delta(body: Json) -> Delta:
    """The delta of a chunk, or of a whole answer."""
    (choice,) = body["choices"]
    part = choice.get("delta") or choice.get("message") or {}
    text = choice.get("text") or part.get("content") or ""
    reason = choice["finish_reason"]
    ids, seed = tuple(choice["token_ids"]), None if reason is None else choice["seed"]
    return Delta(body["id"], text, ids, None if reason is None else FinishReason(reason), seed=seed)


def _usage(body: Json) -> Usage:
    usage = body["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Usage(usage["prompt_tokens"], usage["completion_tokens"], cached)


def _acceptance(body: Json) -> Acceptance | None:
    told = (body.get("metrics") or {}).get("speculative_decoding")
    if told is None:
        return None
    return Acceptance(told["num_spec_steps"], told["num_draft_tokens"], told["num_accepted_draft_tokens"])
