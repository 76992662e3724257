"""The requests that this process is answering, by id, so that a call from elsewhere can end one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from protocol.errors import Aborted

T = TypeVar("T")
MAX_DIGITS = 6  # of a choice's number


class OpenRequests:
    """A choice of a call has the call's id, a dash and its number. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open: dict[str, _Request] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def watch(self, request_id: str, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items of a generator. Closes it and raises Aborted if the request is aborted."""
        request = self._open[request_id] = _Request()
        try:
            async with aclosing(items):
                while True:
                    try:
                        async with request.step():
                            item = await anext(items)
                    except StopAsyncIteration:
                        return
                    yield item
        finally:
            del self._open[request_id]

    async def run(self, request_id: str, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. Cancels it and raises Aborted if the request is aborted."""
        request = self._open[request_id] = _Request()
        try:
            async with request.step():
                return await work
        finally:
            del self._open[request_id]

    def abort(self, request_id: str) -> bool:
        """Ends a request, or all choices of a call; whether there was one."""
        asked = [request for name, request in self._open.items() if _is_of(name, request_id)]
        for request in asked:
            request.abort()
        return bool(asked)


class _Request:
    def __init__(self) -> None:
        self._aborted = False
        self._scope: asyncio.Timeout | None = None

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Cancels the body when the request is aborted, and raises Aborted."""
        if self._aborted:
            raise _aborted()
        try:
            async with asyncio.timeout(None) as self._scope:
                yield
        except TimeoutError:
            if not self._aborted:
                raise
            raise _aborted() from None
        finally:
            self._scope = None

    def abort(self) -> None:
        self._aborted = True
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())


def _aborted() -> Aborted:
    return Aborted("the request was aborted by its id")


def _is_of(name: str, request_id: str) -> bool:
    if name == request_id:
        return True
    number = name.removeprefix(f"{request_id}-")
    return number != name and number.isdecimal() and len(number) <= MAX_DIGITS
