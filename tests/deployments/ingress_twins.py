"""A target without a model, for the ingress under a real Ray Serve: the first prompt token says what it does."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from logging.handlers import MemoryHandler
from pathlib import Path

from protocol.errors import DraftPoolError, InvalidRequest, QueueFull
from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun

COUNT, FULL, REFUSE, FAULT, DIE, SLOW = range(70, 76)
NUM_TOKENS = 8


class ScriptedTarget:
    def __init__(self) -> None:
        self._num_open = 0

    async def describe(self) -> dict[str, object]:
        told = {"max_model_len": 64, "vocab_size": 320, "eos_token_ids": (1,), "ready": True}
        return told | {"num_open": self._num_open}

    async def log(self) -> str:
        """What Serve has logged of this replica."""
        (handler,) = (h for h in logging.getLogger("ray.serve").handlers if isinstance(h, MemoryHandler))
        handler.flush()
        assert isinstance(handler.target, logging.FileHandler)
        return Path(handler.target.baseFilename).read_text()

    async def stats(self) -> dict[str, int]:
        return {"num_running": self._num_open}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenRun | DraftPoolError, None]:
        what = request.prompt_ids[0]
        if what == FULL:
            yield QueueFull("9 requests are queued; try again later")
            return
        if what == REFUSE:
            yield InvalidRequest("no such thing", "top_k")
            return
        if what == FAULT:
            raise RuntimeError("secret prompt")
        self._num_open += 1
        try:
            for index in range(NUM_TOKENS):
                await asyncio.sleep(0.5 if what == SLOW and index else 0)
                if what == DIE and index == 3:
                    await asyncio.sleep(0.2)  # what was yielded is on its way
                    os._exit(1)
                last = index == NUM_TOKENS - 1
                reason, stats = (FinishReason.LENGTH, SequenceStats(7, 4, 2)) if last else (None, None)
                yield TokenRun(request.request_id, index, (80 + index,), reason, stats)
        finally:
            self._num_open -= 1
