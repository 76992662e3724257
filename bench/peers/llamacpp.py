"""llama.cpp behind the seam, on the GGUF file that our target was read from.

It needs an environment of its own, which `make bench-peers` builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cells import Cell, CellOutcome, Subject, TokenIds, Unavailable
from bench.machine import ROOT
from bench.peers.worker_process import WorkerProcess, timed
from model.gguf.unpack import GGUF_NAME

ENVIRONMENT = ROOT / ".venv-llamacpp"


class LlamaCppEngine:
    """One worker process with one server, which holds as many sequences as the largest batch."""

    name = "llama.cpp"
    shares_noise = False

    def __init__(self, subject: Subject, environment: Path = ENVIRONMENT) -> None:
        self._subject = subject
        self._environment = environment
        self._worker: WorkerProcess | None = None
        self.version = ""

    def open(self) -> None:
        file = self._subject.target / GGUF_NAME
        if not file.exists():
            raise Unavailable("it reads GGUF files only; give one as --target")
        self._worker = WorkerProcess(self._environment, "bench.peers.llamacpp_worker")
        options = {"threads": self._subject.threads, "batch": self._subject.max_batch}
        options["context"] = self._subject.max_length
        answer = self._worker.ask({"op": "open", "name": "plain", "file": str(file.resolve())} | options)
        self.version = answer["version"]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        if self._worker is None:
            raise Unavailable("its worker is not running")
        command: dict[str, Any] = {"op": "run", "name": "plain", "prompts": [list(prompt) for prompt in prompts]}
        command |= {"max_tokens": max_tokens, "batch": cell.batch, "temperature": cell.temperature}
        answer = self._worker.ask(command)
        return CellOutcome(tuple(timed(output, answer["started"], cell.length) for output in answer["outputs"]))
