"""What an ingress knows of its targets: what each says of itself, what it said before, and how far its start is.

Many requests may wait for a model that is away: they share one question to it, and one to the cluster's control store,
which is asked on one thread of its own and whose answers hold for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from api.backend import ModelCard, Starting
from api.single_flight import Bounds, Lasting, SingleFlight
from deployments.texts import ModelText

logger = logging.getLogger(__name__)

T = TypeVar("T")

DESCRIBE_TIMEOUT_S = 1.0
LIFE_S = 1.0  # of what the control store answered
# Who waits is a request that Serve has let in: they have their bound there.
BOUNDS = Bounds(age_s=DESCRIBE_TIMEOUT_S, limit_s=DESCRIBE_TIMEOUT_S, most=1 << 16)

Info = Mapping[str, Any]  # what a target says of itself
Recall = Callable[[str], Info | None]


class Cards:
    """Used on one event loop. Only a target's own answer is certain; what fails or is late counts as unknown."""

    def __init__(
        self,
        ask: Mapping[str, Callable[[], Awaitable[Info]]],
        texts: Mapping[str, ModelText],
        recall: Recall,
        starting: Callable[[str], Starting],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """All by model. ask: what the target says now. recall: what it last told any ingress. starting: how far its
        replicas have started. The latter two may block.
        """
        self._texts, self._created = texts, int(time.time())
        self._store = ThreadPoolExecutor(1, thread_name_prefix="control-store")
        self._asked = {model: SingleFlight(ask[model], BOUNDS, clock) for model in ask}
        self._before = {model: self._stored(recall, model, clock) for model in ask}
        self._starting = {model: self._stored(starting, model, clock) for model in ask}
        self._cards: dict[str, ModelCard] = {}  # of targets that have answered
        self._recalled: dict[str, ModelCard] = {}

    async def card(self, model: str) -> ModelCard | None:
        """While a target is away, the card of what it said before stands in, so that requests can wait for it."""
        if model in self._cards or await self.ready(model):
            return self._cards[model]
        if model not in self._recalled:
            try:
                if info := await self._before[model]():
                    self._recalled[model] = self._card(model, info)
            except Exception:  # it was written by other code, or the store is away
                logger.info("what %s said of itself before could not be read", model, exc_info=True)
        return self._cards.get(model) or self._recalled.get(model)

    async def ready(self, model: str) -> bool:
        try:
            info = await self._asked[model]()
        except Exception:  # no answer in time: Serve is starting or restarting it
            return False
        self._cards[model] = self._card(model, info)
        return bool(info["ready"])

    async def starting(self, model: str) -> Starting:
        try:
            return await self._starting[model]()
        except Exception:  # the store is away
            logger.info("how far %s has started could not be read", model, exc_info=True)
            return Starting()

    def _card(self, model: str, info: Info) -> ModelCard:
        return self._texts[model].card(model, info, self._created)

    def _stored(self, read: Callable[[str], T], model: str, clock: Callable[[], float]) -> Lasting[T]:
        async def ask() -> T:
            return await asyncio.get_running_loop().run_in_executor(self._store, read, model)

        return Lasting(ask, LIFE_S, BOUNDS, clock)
