"""Renders chat templates in a process of its own (api/render_worker.py), bounded in time, memory and size."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.render_worker import SIZE
from protocol.errors import InvalidRequest, PromptTooLong

WORKER = Path(__file__).with_name("render_worker.py")
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ")  # and no secret
REPLY_S = 60.0  # the worker's start included; its own alarm is much earlier
WORDS = 2 << 20  # bytes that a reply may have beyond the text

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """cpu_s: of one text. memory_bytes: of the process, beyond what it takes to start."""

    cpu_s: float = 2.0
    memory_bytes: int = 512 << 20


LIMITS = RenderLimits()


class WorkerEnded(Exception):
    """The process is gone. status: as of subprocess, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Renderer:
    """Renders one text at a time, in order, for one model: a template that takes its time delays no other model.

    Starts its process for the first text, or at `start`, and another one after the process has ended.
    """

    def __init__(self, limits: RenderLimits = LIMITS) -> None:
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="templates")  # the only one that uses the worker
        self._worker: Worker | None = None

    def start(self) -> None:
        self._thread.submit(self._started)

    async def render(self, arguments: Mapping[str, Any], most_bytes: int) -> str:
        """The text for these arguments of transformers' render_jinja_template, which must be JSON.

        Raises InvalidRequest with the template's error, or if it takes too much; PromptTooLong for a longer text.
        """
        job = {"arguments": arguments, "most_bytes": most_bytes}
        reply = await asyncio.get_running_loop().run_in_executor(self._thread, self._reply, job)
        if (text := reply.get("text")) is not None:
            return str(text)
        if (num_bytes := reply.get("num_bytes")) is not None:
            raise PromptTooLong(
                f"it makes {num_bytes} bytes of them, and {most_bytes} can fit; shorten them", "messages"
            )
        raise InvalidRequest(str(reply["error"]), "messages")

    def _reply(self, job: Json) -> Json:
        """A second worker is asked if the first is gone, unless it has had the time."""
        try:
            return self._ask(job)
        except WorkerEnded as end:
            if end.status == -signal.SIGPROF:
                return {"error": f"it takes more than {self._limits.cpu_s:g} s"}
        try:
            return self._ask(job)
        except WorkerEnded as end:
            return {"error": f"its process ended with status {end.status}"}

    def _ask(self, job: Json) -> Json:
        try:
            return self._started().ask(job)
        except WorkerEnded:
            self._worker = None
            raise

    def _started(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._limits)
        return self._worker


class Worker:
    """One process and the socket to it. It ends with this object."""

    def __init__(self, limits: RenderLimits) -> None:
        connection, other_end = socket.socketpair()
        connection.settimeout(REPLY_S)
        command = [sys.executable, "-P", str(WORKER), other_end.fileno(), limits.memory_bytes, limits.cpu_s]
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with other_end:
            process = subprocess.Popen(
                list(map(str, command)),
                pass_fds=[other_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        self._connection, self._process = connection, process
        self._end = weakref.finalize(self, end, connection, process)

    def ask(self, job: Json) -> Json:
        """Raises WorkerEnded."""
        content = json.dumps(job).encode()
        try:
            self._connection.sendall(SIZE.pack(len(content)) + content)
            (size,) = SIZE.unpack(self._received(SIZE.size))
            if size > job["most_bytes"] * 6 + WORDS:  # JSON spells a byte with six at most
                raise EOFError
            reply: Json = json.loads(self._received(size))
        except (OSError, EOFError, ValueError):
            self._end()
            raise WorkerEnded(self._process.returncode) from None
        return reply

    def _received(self, size: int) -> bytes:
        parts = list[bytes]()
        while size:
            part = self._connection.recv(min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """The status of a process that has ended itself stays what it is."""
    connection.close()
    process.kill()
    process.wait()
