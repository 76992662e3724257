"""`draftpool demo`: the demo targets and their draft pool on this machine; a completion from each target at the same
time, and then what the pool brings.
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
from cli.demo_gain import Gain, arranged, measure, said_of, table
from cli.demo_streams import Ask, StreamedCompletion, read, stream_all
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
LINK_S = 10.0  # that a target may take to find the pool, and to draft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="another config, which runs as it is (default: the demo family)")
    parser.add_argument("--prompt", help="text to complete (default: heads of functions)")
    parser.add_argument("--max-tokens", type=whole(2), default=64, help="default: %(default)s")
    parser.add_argument("--pairs", type=whole(1), default=5, help="measurements with and without the pool (default: 5)")


def run(args: argparse.Namespace) -> int:
    num_cores = usable_cores()
    config = load_config(args.config) if args.config else arranged(load_config(CONFIG), num_cores)
    config = config.model_copy(update={"http": HttpConfig(port=free_port()), "grpc": None})
    prompts = (args.prompt,) if args.prompt else PROMPTS
    errors = Console(stderr=True)
    with stopped_by_sigterm(), started(config, errors) as url:
        show(config, url, [Ask(prompt, args.max_tokens) for prompt in prompts], args.pairs, errors)
        Console().print(said_of(config, num_cores, steps_of(url)), highlight=False, soft_wrap=True)
    return 0


@contextmanager
def started(config: AppConfig, errors: Console) -> Iterator[str]:
    """The running application. What its config is worth is found out while Ray comes up: both take seconds."""
    with ThreadPoolExecutor(1) as thread, starting(errors) as bar:
        progress, warnings = progress_of(bar), thread.submit(warnings_of, config)
        with local_ray(config):
            for warning in warnings.result():
                errors.print(warning, highlight=False, soft_wrap=True, markup=False)
            from deployments.cluster import serving  # which imports all that serves, in the other thread by now

            with serving(config, progress, delete=False) as url:
                bar.stop()
                yield url


def warnings_of(config: AppConfig) -> list[str]:
    """Raises ConfigError or UnsupportedModel. Compiles the kernels where they are not yet."""
    from cli.check import check_config
    from deployments import cluster  # noqa: F401
    from deployments.process import explain_slow_execution

    slower = explain_slow_execution(config)
    return [*check_config(config), *([f"warning: {slower}"] if slower else [])]


def show(config: AppConfig, url: str, asks: Sequence[Ask], num_pairs: int, errors: Console) -> None:
    console = Console()
    names = [target.name for target in config.targets]
    for target in config.targets:
        warm_up(url, target.name, replace(asks[0], max_tokens=8), LINK_S if target.speculation else 0.0)
    with Live(console=console) as live:
        completed(stream_all(url, names, asks[0], lambda found: live.update(panels(found, asks[0].prompt))))
    turns = track(range(num_pairs), "with the pool and without", console=errors, transient=True)
    pairs = [measure(lambda ask: completed(stream_all(url, names, ask)), asks[i % len(asks)], i) for i in turns]
    console.print(table([Gain.of([pair[i] for pair in pairs]) for i in range(len(names))], num_pairs))


def completed(completions: Sequence[StreamedCompletion]) -> Sequence[StreamedCompletion]:
    """Raises NotReady with what the first that failed has met."""
    for each in completions:
        if each.error:
            raise NotReady(f"{each.model}: {each.error}")
    return completions


def warm_up(url: str, model: str, ask: Ask, seconds: float) -> None:
    """First passes pick kernels and open streams, and before those are open nothing is drafted; they are not what the
    demo is to show. Again until a draft was accepted, for so long.
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


def steps_of(url: str) -> set[str]:
    """Who takes the steps of the models, as they tell it themselves."""
    with open_url(f"{url}/debug/stats", timeout_s=10) as response:
        stats: dict[str, Any] = json.load(response)
    replicas = [replica for replicas in stats["targets"].values() for replica in replicas] + stats["pool"]
    return {replica["steps_run"]["by"] for replica in replicas if replica["steps_run"]}
