"""`draftpool demo`: both demo targets and a pool of two drafters, one completion from each target at the same time."""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deployments.arguments import whole
from deployments.config import HttpConfig, load_config
from deployments.direct import opened
from deployments.serve_command import started, stopped_by_sigterm

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
PROMPT = '''def read_lines(path):
    """Return the lines of a text file, without their line ends."""
'''
REFRESH_PER_S = 10
LINK_S = 10.0  # that a target may take to find the pool, and to draft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, help="another config (default: the demo family)")
    parser.add_argument("--prompt", default=PROMPT, help="text to complete (default: the head of a function)")
    parser.add_argument("--max-tokens", type=whole(1), default=96, help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    from deployments.check import check_config
    from deployments.cluster import free_port

    console = Console()
    config = load_config(args.config)
    config = config.model_copy(update={"http": HttpConfig(port=free_port()), "grpc": None})
    errors = Console(stderr=True)
    for warning in check_config(config):
        errors.print(warning, highlight=False, soft_wrap=True)
    with stopped_by_sigterm(), started(config, errors) as url:
        names = [target.name for target in config.targets]
        for target in config.targets:
            warm_up(url, target.name, args.prompt, LINK_S if config.pool and target.speculation else 0.0)
        console.print(table(stream_all(url, names, args.prompt, args.max_tokens, console)))
    return 0


@dataclass
class Completion:
    """One stream as it comes in; the thread that reads it writes, the display reads."""

    model: str
    text: str = ""
    tokens: int = 0
    rounds: int = 0
    accepted: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    error: str | None = None

    def take(self, event: dict[str, Any], now: float) -> None:
        for choice in event.get("choices", ()):
            self.first_s = self.first_s or now
            self.last_s = now
            self.text += choice["text"]
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
        counts = event.get("metrics", {}).get("speculative_decoding", {})
        self.rounds = counts.get("num_spec_steps", self.tokens - 1)
        self.accepted = counts.get("num_accepted_draft_tokens", 0)

    @property
    def tokens_per_second(self) -> float:
        span = self.last_s - self.first_s
        return (self.tokens - 1) / span if span > 0 else 0.0


def warm_up(url: str, model: str, prompt: str, seconds: float) -> None:
    """First passes pick kernels and open streams, and before those are open nothing is drafted; they are not what the
    demo is to show. Again until a draft was accepted, for so long.
    """
    until = time.monotonic() + seconds
    while True:
        completion = Completion(model)
        read(url, completion, prompt, max_tokens=8)
        if completion.accepted or completion.error or time.monotonic() > until:
            return


def stream_all(url: str, models: Sequence[str], prompt: str, max_tokens: int, console: Console) -> list[Completion]:
    completions = [Completion(model) for model in models]
    readers = [
        threading.Thread(target=read, args=(url, completion, prompt, max_tokens), daemon=True)
        for completion in completions
    ]
    with Live(console=console, refresh_per_second=REFRESH_PER_S) as live:
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            live.update(panels(completions, prompt))
            time.sleep(1 / REFRESH_PER_S)
        live.update(panels(completions, prompt))
    return completions


def read(url: str, completion: Completion, prompt: str, max_tokens: int) -> None:
    try:
        for event in events(url, completion.model, prompt, max_tokens):
            completion.take(event, time.perf_counter())
    except OSError as error:
        completion.error = str(error)


def events(url: str, model: str, prompt: str, max_tokens: int) -> Iterator[dict[str, Any]]:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with opened(request, timeout_s=120) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def panels(completions: Sequence[Completion], prompt: str) -> Group:
    return Group(
        *(
            Panel(Text(prompt, style="dim") + Text(completion.text), title=completion.model, title_align="left")
            for completion in completions
        )
    )


def table(completions: Sequence[Completion]) -> Table:
    made = Table("target", "tokens", "rounds", "mean accepted", "tokens/s")
    for each in completions:
        if each.error:
            made.add_row(each.model, each.error)
            continue
        accepted = f"{each.accepted / max(each.rounds, 1):.2f}"
        made.add_row(each.model, str(each.tokens), str(each.rounds), accepted, f"{each.tokens_per_second:.1f}")
    return made
