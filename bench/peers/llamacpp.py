"""llama.cpp behind the seam, on the GGUF file that our target was read from: plain, with a draft model, with n-grams.

It needs an environment of its own, which `make bench-peers` builds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, Subject, TokenIds, Unavailable
from bench.machine import ROOT
from bench.peers.worker_engine import WorkerEngine
from model.gguf.unpack import GGUF_NAME

ENVIRONMENT = ROOT / ".venv-llamacpp"


class LlamaCppEngine(WorkerEngine):
    """Its server for each mode and draft length holds as many sequences as the largest batch."""

    name = "llama.cpp"
    worker = "bench.peers.llamacpp_worker"

    def __init__(self, subject: Subject, environment: Path = ENVIRONMENT) -> None:
        super().__init__(subject, environment)

    def open(self) -> None:
        if not (self._subject.target / GGUF_NAME).exists():
            raise Unavailable("it reads GGUF files only; give one as --target")
        super().open()
        self.version = self._ask({"op": "version"})["version"]

    def log_probabilities(self, window: TokenIds) -> list[float]:
        """Of every token of a text but the first, behind those before it."""
        answer = self._ask({"op": "judge", "window": list(window)} | self._server("llamacpp", 0))
        return list(answer["log_probabilities"])

    def token_ids(self, text: str) -> list[int]:
        """Special tokens in the text count as such."""
        return list(self._ask({"op": "tokenize", "text": text} | self._server("llamacpp", 0))["token_ids"])

    def _setting(self, cell: Cell) -> dict[str, Any]:
        return self._server(cell.mode, cell.length)

    def _server(self, mode: str, length: int) -> dict[str, Any]:
        """What the worker opens at its first use."""
        subject = self._subject
        draft = str(subject.draft_gguf) if mode == "llamacpp-draft" else None
        server = {"mode": mode, "length": length, "ngram": subject.ngram, "draft": draft}
        server |= {"file": str((subject.target / GGUF_NAME).resolve())}
        return server | {"threads": subject.threads, "slots": subject.max_batch, "context": subject.max_length}


@contextmanager
def llama_cpp(target: Path, threads: int = 1, max_length: int = 64) -> Iterator[LlamaCppEngine]:
    """Plain and for one sequence. Raises Unavailable."""
    subject = Subject(target, None, torch.bfloat16, threads, max_batch=1, max_length=max_length)
    with closing(LlamaCppEngine(subject)) as engine:
        engine.open()
        yield engine
