"""The engine alone, in a process that is bound to cores and threads as a replica is: what serving is measured against.

`OfflineEngine` is the handle, `python -m bench.serving.offline` the process. They speak in lines of JSON: the job,
then one line for each run, answered by what the run took. The process ends with its input, so it never outlives its
owner.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from transformers import AutoTokenizer

from api.text import decode
from bench import machine
from bench.ours import requests
from deployments.config import TargetConfig
from deployments.models import load_model
from deployments.process import pin_process
from model.files import resolve
from protocol.request import GenerateRequest
from router.policy import Off
from targets.complete import complete
from targets.engine import Engine, EngineConfig

STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of all prompts, from the first submission to the last token."""

    num_tokens: int
    seconds: float
    texts: list[str] = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


class OfflineEngine:
    """target.max_batch requests are decoded together, the others queue; greedy, EOS ignored."""

    def __init__(self, target: TargetConfig, prompts: Sequence[str], max_tokens: int) -> None:
        self._job = {"target": target.model_dump(mode="json"), "prompts": list(prompts), "max_tokens": max_tokens}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.serving.offline"],
            cwd=machine.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        self._tell(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=STOP_S)

    def run(self) -> Timing:
        """Raises RuntimeError when the process has ended."""
        self._tell(None)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the offline engine's process has ended; its error stands above")
        return Timing(**json.loads(line))

    def _tell(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


def timed(engine: Engine, asked: Sequence[GenerateRequest], tokenizer: Any) -> Timing:
    began = time.perf_counter()
    completions = complete(engine, asked)
    seconds = max(completion.last_s for completion in completions) - began
    texts = [decode(tokenizer, completion.token_ids) for completion in completions]
    return Timing(sum(len(completion.token_ids) for completion in completions), seconds, texts)


def main() -> int:
    job = json.loads(sys.stdin.readline())
    target = TargetConfig.model_validate(job["target"])
    pin_process(target)
    tokenizer = AutoTokenizer.from_pretrained(resolve(target.path))
    asked = requests([tokenizer.encode(prompt) for prompt in job["prompts"]], 0.0, job["max_tokens"])
    config = EngineConfig(target.max_batch, len(asked), target.prefill_chunk, target.max_model_len)
    engine = Engine(load_model(target), Off(), None, config)
    engine.start()
    try:
        for _ in sys.stdin:
            sys.stdout.write(json.dumps(asdict(timed(engine, asked, tokenizer))) + "\n")
            sys.stdout.flush()
    finally:
        engine.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
