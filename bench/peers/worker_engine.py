"""A peer in a Python environment of its own: one JSON command a line to its worker, one JSON answer a line back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from bench.cells import Cell, CellOutcome, Subject, Timed, TokenIds, Unavailable
from bench.machine import ROOT


class WorkerEngine:
    """An engine in a worker process. Raises Unavailable without its environment, and when the worker has died."""

    shares_noise = False
    worker: ClassVar[str]  # the module that the environment runs

    def __init__(self, subject: Subject, environment: Path) -> None:
        self._subject = subject
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self.version = ""

    def open(self) -> None:
        python = self._environment / "bin/python"
        if not python.exists():
            raise Unavailable(f"{self._environment.name} is not there; run 'make bench-peers'")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [python, "-m", self.worker], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            with process:
                assert process.stdin is not None
                process.stdin.close()

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        command: dict[str, Any] = {"op": "run", "prompts": [list(prompt) for prompt in prompts]}
        command |= {"max_tokens": max_tokens, "batch": cell.batch, "temperature": cell.temperature}
        answer = self._ask(command | self._setting(cell))
        return CellOutcome(tuple(_timed(output, answer["started"], cell.length) for output in answer["outputs"]))

    def _setting(self, cell: Cell) -> dict[str, Any]:
        """What a command to run a cell says beside its prompts."""
        raise NotImplementedError

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            raise Unavailable("its worker is not running")
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(f"its worker ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer


def _timed(output: dict[str, Any], started: float, length: int) -> Timed:
    """The first run is the prompt's own token; later ones are rounds. Not every worker says how much was drafted."""
    verified = tuple(output["runs"][1:]) if length else ()
    return Timed(tuple(output["token_ids"]), tuple(output["arrived"]), started, verified, output.get("drafted"))
