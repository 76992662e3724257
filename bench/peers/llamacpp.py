"""llama.cpp behind the seam, on the GGUF file that our target was read from: plain, with a draft model, with n-grams.

It needs an environment of its own, which `make bench-peers` builds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, CellOutcome, Subject, TokenIds, Unavailable
from bench.machine import ROOT
from bench.peers.worker_process import WorkerProcess, timed
from model.gguf.unpack import GGUF_NAME

ENVIRONMENT = ROOT / ".venv-llamacpp"


class LlamaCppEngine:
    """One worker process; its server for each mode and draft length holds as many sequences as the largest batch."""

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
        self.version = self._worker.ask({"op": "version"})["version"]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        command: dict[str, Any] = {"op": "run", "prompts": [list(prompt) for prompt in prompts]}
        command |= {"max_tokens": max_tokens, "batch": cell.batch, "temperature": cell.temperature}
        answer = self._ask(command | self._server(cell.mode, cell.length))
        return CellOutcome(tuple(timed(output, answer["started"], cell.length) for output in answer["outputs"]))

    def log_probabilities(self, window: TokenIds) -> list[float]:
        """Of every token of a text but the first, behind those before it."""
        answer = self._ask({"op": "judge", "window": list(window)} | self._server("llamacpp", 0))
        return list(answer["log_probabilities"])

    def token_ids(self, text: str) -> list[int]:
        """Special tokens in the text count as such."""
        return list(self._ask({"op": "tokenize", "text": text} | self._server("llamacpp", 0))["token_ids"])

    def _server(self, mode: str, length: int) -> dict[str, Any]:
        """What the worker opens at its first use."""
        subject = self._subject
        draft = str(subject.draft_gguf) if mode == "llamacpp-draft" else None
        server = {"mode": mode, "length": length, "ngram": subject.ngram, "draft": draft}
        server |= {"file": str((subject.target / GGUF_NAME).resolve())}
        return server | {"threads": subject.threads, "slots": subject.max_batch, "context": subject.max_length}

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._worker is None:
            raise Unavailable("its worker is not running")
        return self._worker.ask(command)


@contextmanager
def llama_cpp(target: Path, threads: int = 1, max_length: int = 64) -> Iterator[LlamaCppEngine]:
    """Plain and for one sequence. Raises Unavailable."""
    subject = Subject(target, None, torch.bfloat16, threads, max_batch=1, max_length=max_length)
    with closing(LlamaCppEngine(subject)) as engine:
        engine.open()
        yield engine
