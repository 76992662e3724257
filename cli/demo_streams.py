"""Streams completions from several targets over HTTP at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any
from urllib.request import Request

from cli.demo_asking import DemoRequest
from deployments.direct import open_url
from protocol.errors import NotReady

POLL_S = 0.1


@dataclass
class StreamedCompletion:
    """One completion while it streams in. Its reader thread writes it; the display reads it."""

    model: str
    text: str = ""
    num_tokens: int = 0
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def take(self, event: dict[str, Any], now: float) -> None:
        for choice in event.get("choices", ()):
            self.first_s = self.first_s or now
            self.last_s = now
            part = choice.get("delta", choice)  # of a chat, or of a completion
            self.text += part.get("content", "") + part.get("text", "")
        if event.get("usage"):
            self.num_tokens = event["usage"]["completion_tokens"]
        counts = event.get("metrics", {}).get("speculative_decoding", {})
        self.num_rounds = counts.get("num_spec_steps", self.num_tokens - 1)
        self.num_drafted = counts.get("num_draft_tokens", 0)
        self.num_accepted = counts.get("num_accepted_draft_tokens", 0)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second from the first token to the last."""
        span = self.last_s - self.first_s
        return (self.num_tokens - 1) / span if span > 0 else 0.0


def stream_all(
    url: str,
    models: Sequence[str],
    ask: DemoRequest,
    watch: Callable[[Sequence[StreamedCompletion]], None] = lambda completions: None,
) -> list[StreamedCompletion]:
    """Streams a completion from each model. Raises NotReady if one fails.

    watch is called with all completions every tenth of a second, and once at the end.
    """
    completions = [StreamedCompletion(model) for model in models]
    with ThreadPoolExecutor(len(models)) as threads:
        reading = [threads.submit(read, url, completion, ask) for completion in completions]
        while wait(reading, POLL_S).not_done:
            watch(completions)
    watch(completions)
    for each in reading:
        each.result()
    return completions


def read(url: str, completion: StreamedCompletion, ask: DemoRequest) -> None:
    """Streams one completion to its end. Raises NotReady if it fails."""
    body = json.dumps(ask.body(completion.model)).encode()
    request = Request(f"{url}{ask.manner.route}", body, {"Content-Type": "application/json"})
    try:
        with open_url(request, timeout_s=120) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    completion.take(json.loads(line.removeprefix(b"data: ")), time.perf_counter())
    except OSError as error:
        raise NotReady(f"{completion.model}: {error}") from None
