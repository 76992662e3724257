"""A peer in a Python environment of its own: one JSON command a line to its worker, one JSON answer a line back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from bench.cells import Timed, Unavailable
from bench.machine import ROOT


class WorkerProcess:
    """Raises Unavailable for an environment that is not there, and from `ask` when the worker has died."""

    def __init__(self, environment: Path, module: str) -> None:
        python = environment / "bin/python"
        if not python.exists():
            raise Unavailable(f"{environment.name} is not there; run 'make bench-peers'")
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[str] | None = subprocess.Popen(
            [python, "-m", module], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            with process:
                assert process.stdin is not None
                process.stdin.close()

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
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


def timed(output: dict[str, Any], started: float, length: int) -> Timed:
    """The first run is the prompt's own token; later ones are rounds. Not every worker says how much was drafted."""
    verified = tuple(output["runs"][1:]) if length else ()
    return Timed(tuple(output["token_ids"]), tuple(output["arrived"]), started, verified, output.get("drafted"))
