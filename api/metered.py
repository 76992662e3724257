"""Counts what passes: the deltas of a completion, and the answers of the application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.generation import Delta
from api.jobs import GenerationJob
from api.meter import Meter
from protocol.errors import DraftPoolError
from protocol.request import FinishReason

NO_ROUTE = "other"  # all paths that do not exist, so that callers cannot make series
Deltas = AsyncGenerator[Delta, None]


def streamed(meter: Meter, job: GenerationJob, deltas: Deltas, arrived: float) -> Deltas:
    """The deltas of a completion that is streamed. arrived: when it was asked for, by the meter's clock.

    What is told of a prompt comes with the whole answer, at its end.
    """
    return _counted((Whole if job.request.tells_prompt else Streamed)(meter, job, arrived), deltas)


def whole(meter: Meter, job: GenerationJob, deltas: Deltas, arrived: float) -> Deltas:
    """As `streamed`, for one whose caller gets it in one piece, so that only its end has a time."""
    return _counted(Whole(meter, job, arrived), deltas)


async def _counted(counts: Whole, deltas: Deltas) -> Deltas:
    with counts.meter.open.labels(counts.model).track_inprogress(), counts.places.taken():
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    counts.take(delta)
                    yield delta
        except Exception as error:
            counts.fail(error)
            raise
        finally:
            counts.end()


class Whole:
    """The counts of one completion."""

    def __init__(self, meter: Meter, job: GenerationJob, arrived: float) -> None:
        self.meter, self.model, self.places = meter, job.card.id, job.card.places
        self._num_prompt, self._arrived = len(job.request.prompt_ids), arrived
        self._began = False
        self._outcome: FinishReason | None = FinishReason.ABORT  # None: it was refused

    def take(self, delta: Delta) -> None:
        if not self._began:
            self._began = True
            self.meter.prompt_tokens.labels(self.model).inc(self._num_prompt)
        self.meter.generation_tokens.labels(self.model).inc(len(delta.token_ids))
        if delta.finish_reason is not None:
            self._outcome = delta.finish_reason
            self.meter.whole_s.labels(self.model).observe(self.meter.clock() - self._arrived)

    def fail(self, error: Exception) -> None:
        refused = isinstance(error, DraftPoolError) and not self._began
        self._outcome = None if refused else FinishReason.ERROR

    def end(self) -> None:
        if self._outcome is not None:
            self.meter.ended.labels(self.model, self._outcome.value).inc()


class Streamed(Whole):
    """The counts of one completion that is streamed, with the times of its pieces."""

    _num_first = 0  # tokens of the first piece
    _first_s = 0.0
    _last_s: float | None = None

    def take(self, delta: Delta) -> None:
        super().take(delta)
        now = self.meter.clock()
        if delta.token_ids:
            self._piece(delta, now)
        if delta.finish_reason is not None and (behind := delta.num_tokens - self._num_first) > 0:
            self.meter.per_token_s.labels(self.model).observe((now - self._first_s) / behind)

    def _piece(self, delta: Delta, now: float) -> None:
        if self._last_s is None:
            self._num_first, self._first_s = len(delta.token_ids), now
            self.meter.first_s.labels(self.model).observe(now - self._arrived)
        else:
            self.meter.between_s.labels(self.model).observe(now - self._last_s)
        self._last_s = now


class MeterMiddleware:
    """Counts every answer by its route and status."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", NO_ROUTE)
                self._meter.responses.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, send_counted)
