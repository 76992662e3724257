"""The transports over HTTP: OpenAI's routes by httpx. What does not wait is shared by both."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from typing import cast

import httpx

from draftpool.asks import Ask
from draftpool.bodies import Events, Json, answer_of, body_of, models_of
from draftpool.errors import ConnectionLost, Refused, ServerFault, http_error, retry_after
from draftpool.transport import Server
from draftpool.values import Completion, Delta, Model
from protocol.errors import InvalidRequest, NotReady, TimedOut

TIME_LIMIT = "x-request-timeout-seconds"
GRACE_S = 1.0  # how much longer than the server itself a client waits for its error


class HttpTransport:
    def __init__(self, server: Server) -> None:
        self._http = httpx.Client(**_settings(server))

    def complete(self, ask: Ask, limit_s: float | None) -> Completion:
        with _translated():
            return answer_of(_checked(self._http.send(self._request(ask, limit_s, stream=False))), ask)

    def stream(self, ask: Ask, limit_s: float | None) -> Generator[Delta, None, None]:
        events = Events(ask)
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
            return models_of(_checked(self._http.send(_listing(self._http.build_request, limit_s))))

    def close(self) -> None:
        self._http.close()

    def _request(self, ask: Ask, limit_s: float | None, *, stream: bool) -> httpx.Request:
        return _asking(self._http.build_request, ask, limit_s, stream=stream)


class AsyncHttpTransport:
    def __init__(self, server: Server) -> None:
        self._http = httpx.AsyncClient(**_settings(server))

    async def complete(self, ask: Ask, limit_s: float | None) -> Completion:
        with _translated():
            return answer_of(_checked(await self._http.send(self._request(ask, limit_s, stream=False))), ask)

    async def stream(self, ask: Ask, limit_s: float | None) -> AsyncGenerator[Delta, None]:
        events = Events(ask)
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
            return models_of(_checked(await self._http.send(_listing(self._http.build_request, limit_s))))

    async def close(self) -> None:
        await self._http.aclose()

    def _request(self, ask: Ask, limit_s: float | None, *, stream: bool) -> httpx.Request:
        return _asking(self._http.build_request, ask, limit_s, stream=stream)


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
        content = json.dumps(body_of(ask, stream=stream))
    except (ValueError, TypeError) as error:
        raise Refused(InvalidRequest(f"an option has a wrong type: {error}")) from None
    headers = {"content-type": "application/json"} | ({} if limit_s is None else {TIME_LIMIT: f"{limit_s:.3f}"})
    return build("POST", path, content=content, headers=headers, timeout=_patience(limit_s))


def _listing(build: Callable[..., httpx.Request], limit_s: float | None) -> httpx.Request:
    return build("GET", "/v1/models", timeout=_patience(limit_s))


def _patience(limit_s: float | None) -> float | None:
    return None if limit_s is None else limit_s + GRACE_S


def _checked(response: httpx.Response) -> Json:
    """Its body."""
    if response.status_code == 200:
        return cast(Json, response.json())
    try:
        body = response.json()
    except ValueError:
        body = None
    raise Refused(http_error(response.status_code, body), retry_after(response.headers.get("retry-after")))
