"""`draftpool demo`: runs the demo targets and what drafts for them on this machine.

Shows a completion from each target at the same time, and then the speed with drafts and without.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import track
from rich.text import Text

from cli.arguments import whole
from cli.demo_asking import DemoRequest, manner_of
from cli.demo_family import demo_family
from cli.demo_gain import Gain, describe_run, gain_table, measure
from cli.demo_streams import StreamedCompletion, read, stream_all
from cli.output import say, warn
from cli.serve_command import started, stopped_by_sigterm
from deployments.config import AppConfig, HttpConfig, TargetConfig, load_config
from deployments.direct import open_url
from drafters.manifest import drafter_exits
from link.listening import free_port
from model.cores import usable_cores
from model.files import resolve

LINK_S = 10.0  # limit for a target to find the pool and to have something drafted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="another config, which runs as it is (default: the demo's models)")
    parser.add_argument("--prompt", help="a question, or for code models a text to complete (default: a few of each)")
    parser.add_argument("--max-tokens", type=whole(2), default=96, help="default: %(default)s")
    parser.add_argument("--pairs", type=whole(1), default=5, help="measurements with drafts and without (default: 5)")


def run(args: argparse.Namespace) -> int:
    from cli.check import check_config

    num_cores = usable_cores()
    config, told = (load_config(args.config), []) if args.config else demo_family(num_cores)
    config = config.model_copy(update={"http": HttpConfig(port=free_port()), "grpc": None})
    console, errors = Console(), Console(stderr=True)
    warn([*told, *check_config(config)])
    manner = manner_of(config)
    prompts = (args.prompt,) if args.prompt else manner.prompts
    requests = [DemoRequest(manner, prompt, args.max_tokens) for prompt in prompts]
    with stopped_by_sigterm(), started(config, errors) as url:
        show_completions(config, url, requests[0], console)
        names = [target.name for target in config.targets]
        turns = track(range(args.pairs), "with drafts and without", console=errors, transient=True)
        pairs = [measure(lambda ask: stream_all(url, names, ask), requests[i % len(requests)], i) for i in turns]
        gains = [Gain.of(of_target) for of_target in zip(*pairs, strict=True)]
        say(gain_table(gains, args.pairs), describe_run(config, num_cores, read_execution(url)))
    return 0


def show_completions(config: AppConfig, url: str, ask: DemoRequest, console: Console) -> None:
    """Streams a completion from every target at the same time, once the targets are warm."""
    for target in config.targets:
        warm_up(url, target.name, replace(ask, max_tokens=8, speculation=drafted(config, target)))
    with Live(console=console) as live:
        stream_all(
            url,
            [target.name for target in config.targets],
            ask,
            lambda completions: live.update(Group(*(panel(completion, ask) for completion in completions))),
        )


def panel(completion: StreamedCompletion, ask: DemoRequest) -> Panel:
    asked = Text(ask.prompt + ask.manner.gap, style="dim")
    return Panel(asked + Text(completion.text), title=completion.model, title_align="left")


def drafted(config: AppConfig, target: TargetConfig) -> dict[str, int] | Literal["off"]:
    """What a request asks for that is to be drafted for, where the target speculates."""
    if config.pool is None or target.speculation is None:
        return "off"
    return {"depth": drafter_exits(resolve(config.pool.path))[0], "length": 1}


def warm_up(url: str, model: str, ask: DemoRequest) -> None:
    """Repeats a request until something was drafted for it, if it asks for that, but not for long. Raises NotReady.

    Excludes startup from the measurement: the first passes choose kernels, and nothing is drafted before the target has
    connected to the pool.
    """
    until = time.monotonic() + LINK_S
    while True:
        completion = StreamedCompletion(model)
        read(url, completion, ask)
        if completion.num_drafted or ask.speculation == "off" or time.monotonic() > until:
            return


def read_execution(url: str) -> set[str]:
    """How the replicas' models run (kernels), according to /debug/stats."""
    with open_url(f"{url}/debug/stats", timeout_s=10) as response:
        stats: dict[str, Any] = json.load(response)
    replicas = [replica for replicas in stats["targets"].values() for replica in replicas] + stats["pool"]
    return {replica["steps_run"]["by"] for replica in replicas if replica["steps_run"]}
