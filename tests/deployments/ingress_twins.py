"""Targets without a model, before a real ingress: what they commit, refuse or die of is played from a script."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from link.token_sink import SinkAddress
from link.token_stream import TokenStreams
from protocol.errors import DraftPoolError, InvalidRequest, QueueFull
from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun

COUNT, FULL, REFUSE, FAULT, DIE, HANG, POISON = range(70, 77)
NUM_TOKENS = 8

Step = TokenRun | Exception | asyncio.Event | float


async def play(
    streams: TokenStreams, request: GenerateRequest, sink: SinkAddress | None, steps: Sequence[Step]
) -> TokenRun | DraftPoolError:
    """What a target does for a request: runs are committed, errors raised, refusals returned, the rest waited for."""
    with streams.answer(request.request_id, sink) as answer:
        for step in steps:
            if isinstance(step, DraftPoolError):
                return step
            if isinstance(step, Exception):
                raise step
            if isinstance(step, TokenRun):
                answer.add(step)
            else:
                await (step.wait() if isinstance(step, asyncio.Event) else asyncio.sleep(step))
        return await answer.ended


class ScriptedTarget:
    """The first prompt token says what it does. DIE kills the replica that has it first, POISON each one."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._streams: TokenStreams | None = None

    async def describe(self) -> dict[str, object]:
        told = {"max_model_len": 64, "max_batch": 4, "vocab_size": 320, "eos_token_ids": (1,), "exits": (2,)}
        return told | {"longest_draft": None, "ready": True, "num_open": len(self._open), "pid": os.getpid()}

    async def log(self) -> str:
        """What Serve has logged of this replica."""
        (handler,) = (h for h in logging.getLogger("ray.serve").handlers if isinstance(h, MemoryHandler))
        handler.flush()
        assert isinstance(handler.target, logging.FileHandler)
        return Path(handler.target.baseFilename).read_text()

    async def open_requests(self) -> tuple[str, ...]:
        return tuple(self._open)

    async def stats(self) -> dict[str, int]:
        return {"num_running": len(self._open)}

    async def generate(self, request: GenerateRequest, sink: SinkAddress | None = None) -> TokenRun | DraftPoolError:
        what = request.prompt_ids[0]
        self._streams = self._streams or TokenStreams()
        if what == POISON or (what == DIE and not request.resume_ids):
            asyncio.get_running_loop().call_later(0.5, os._exit, 1)
        self._open.append(request.request_id)
        try:
            return await play(self._streams, request, sink, script(request, what))
        finally:
            self._open.remove(request.request_id)


def script(request: GenerateRequest, what: int) -> list[Step]:
    refusals: dict[int, Any] = {
        FULL: QueueFull("9 requests are queued", 6.5),
        REFUSE: InvalidRequest("no such thing", "top_k"),
        FAULT: RuntimeError("secret prompt"),
    }
    if what in refusals:
        return [refusals[what]]
    steps: list[Step] = []
    for index in range(len(request.resume_ids), NUM_TOKENS):
        last = index == NUM_TOKENS - 1
        reason, stats = (FinishReason.LENGTH, SequenceStats(7, 4, 2)) if last else (None, None)
        steps.append(TokenRun(request.request_id, index, (80 + index,), reason, stats))
        if (what in (HANG, DIE) and index == 2) or (what == POISON and index >= 2):
            steps.append(asyncio.Event())
    return steps
