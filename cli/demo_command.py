"""`draftpool demo`: runs the demo targets with their draft pool on this machine.

Shows a completion from each target at the same time, and then the speed with and without the pool.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import track
from rich.text import Text

from cli.arguments import whole
from cli.demo_gain import Gain, describe_run, fit_to_cores, measure, table
from cli.demo_streams import DemoRequest, StreamedCompletion, read, stream_all
from cli.serve_command import progress_of, starting, stopped_by_sigterm
from deployments.config import CONFIGS, AppConfig, HttpConfig, load_config
from deployments.direct import open_url
from deployments.session import local_ray
from link.listening import free_port
from model.cores import usable_cores
from protocol.errors import NotReady

CONFIG = CONFIGS / "demo.yaml"
PROMPTS = (
    'def read_lines(path):\n    """Return the lines of a text file, without their line ends."""\n',
    "class Queue:\n    def __init__(self, size):\n",
    "import argparse\n\n\ndef main():\n",
)
LINK_S = 10.0  # limit for a target to find the pool and to have a draft accepted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="another config, which runs as it is (default: the demo family)")
    parser.add_argument("--prompt", help="text to complete (default: heads of functions)")
    parser.add_argument("--max-tokens", type=whole(2), default=64, help="default: %(default)s")
    parser.add_argument("--pairs", type=whole(1), default=5, help="measurements with and without the pool (default: 5)")


def run(args: argparse.Namespace) -> int:
    num_cores = usable_cores()
    config = load_config(args.config) if args.config else fit_to_cores(load_config(CONFIG), num_cores)
    config = config.model_copy(update={"http": HttpConfig(port=free_port()), "grpc": None})
    prompts = (args.prompt,) if args.prompt else PROMPTS
    errors = Console(stderr=True)
    with stopped_by_sigterm(), started(config, errors) as url:
        show(config, url, [DemoRequest(prompt, args.max_tokens) for prompt in prompts], args.pairs, errors)
        Console().print(describe_run(config, num_cores, read_execution(url)), highlight=False, soft_wrap=True)
    return 0


@contextmanager
def started(config: AppConfig, errors: Console) -> Iterator[str]:
    """Starts the application and yields its URL. Checks the config while Ray starts, since both take seconds."""
    with ThreadPoolExecutor(1) as thread, starting(errors) as bar:
        progress, warnings = progress_of(bar), thread.submit(collect_warnings, config)
        with local_ray(config):
            for warning in warnings.result():
                errors.print(warning, highlight=False, soft_wrap=True, markup=False)
            from deployments.cluster import serving  # slow to import; the other thread has already imported it

            with serving(config, progress, delete=False) as url:
                bar.stop()
                yield url


def collect_warnings(config: AppConfig) -> list[str]:
    """Warnings about a config. Raises ConfigError or UnsupportedModel. Compiles the kernels if necessary."""
    from cli.check import check_config
    from deployments import cluster  # noqa: F401
    from deployments.process import explain_slow_execution

    slower = explain_slow_execution(config)
    return [*check_config(config), *([f"warning: {slower}"] if slower else [])]


def show(config: AppConfig, url: str, asks: Sequence[DemoRequest], num_pairs: int, errors: Console) -> None:
    console = Console()
    names = [target.name for target in config.targets]
    for target in config.targets:
        warm_up(url, target.name, replace(asks[0], max_tokens=8), LINK_S if target.speculation else 0.0)
    with Live(console=console) as live:
        check_completions(stream_all(url, names, asks[0], lambda current: live.update(panels(current, asks[0].prompt))))
    turns = track(range(num_pairs), "with the pool and without", console=errors, transient=True)
    pairs = [measure(lambda ask: check_completions(stream_all(url, names, ask)), asks[i % len(asks)], i) for i in turns]
    console.print(table([Gain.of([pair[i] for pair in pairs]) for i in range(len(names))], num_pairs))


def check_completions(completions: Sequence[StreamedCompletion]) -> Sequence[StreamedCompletion]:
    """The completions. Raises NotReady with the error of the first that failed."""
    for completion in completions:
        if completion.error:
            raise NotReady(f"{completion.model}: {completion.error}")
    return completions


def warm_up(url: str, model: str, ask: DemoRequest, seconds: float) -> None:
    """Repeats a request until a draft was accepted, but no longer than `seconds`.

    Excludes startup from the measurement: the first passes choose kernels, and nothing is drafted before the target has
    connected to the pool.
    """
    until = time.monotonic() + seconds
    while True:
        completion = StreamedCompletion(model)
        read(url, completion, ask)
        if completion.num_accepted or completion.error or time.monotonic() > until:
            return


def panels(completions: Sequence[StreamedCompletion], prompt: str) -> Group:
    return Group(
        *(
            Panel(Text(prompt, style="dim") + Text(completion.text), title=completion.model, title_align="left")
            for completion in completions
        )
    )


def read_execution(url: str) -> set[str]:
    """How the replicas' models run (kernels), according to /debug/stats."""
    with open_url(f"{url}/debug/stats", timeout_s=10) as response:
        stats: dict[str, Any] = json.load(response)
    replicas = [replica for replicas in stats["targets"].values() for replica in replicas] + stats["pool"]
    return {replica["steps_run"]["by"] for replica in replicas if replica["steps_run"]}
