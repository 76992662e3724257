"""`draftpool serve`: runs the application on this machine or on a Ray cluster, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.arguments import whole
from cli.demo_asking import manner_of
from cli.demo_family import demo_family
from cli.output import say, warn
from deployments.config import AppConfig, load_config
from model.cores import usable_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", nargs="?", help="YAML file (default: the demo's models)")
    parser.add_argument("--address", help="Ray cluster to run on (default: start one on this machine)")
    parser.add_argument("--port", type=whole(1, 65535), help="HTTP port instead of the config's")


def run(args: argparse.Namespace) -> int:
    from cli.check import check_config

    config, told = (load_config(args.config), []) if args.config else demo_family(usable_cores())
    if args.port is not None:
        config = config.model_copy(update={"http": config.http.model_copy(update={"port": args.port})})
    warn([*told, *check_config(config)])
    with stopped_by_sigterm():
        try:
            with started(config, Console(stderr=True), args.address) as url:
                say(greeting(config, url))
                threading.Event().wait()
        except KeyboardInterrupt:
            warn(["stopped"])
    return 0


@contextmanager
def started(config: AppConfig, console: Console, address: str | None = None) -> Iterator[str]:
    """Starts the application, with a progress bar, and yields its URL."""
    from deployments.cluster import running
    from deployments.process import explain_slow_execution

    if address is None and (slower := explain_slow_execution(config)):
        warn([f"warning: {slower}"], console)
    words = (SpinnerColumn(), TextColumn("starting"), BarColumn())
    number, loads = TextColumn("{task.completed} of {task.total} replicas"), TextColumn("{task.fields[loading]}")
    counts = (number, TimeElapsedColumn(), loads)
    with Progress(*words, *counts, console=console, transient=True) as bar:
        task = bar.add_task("start", total=None, loading="")

        def show(done: int, total: int, loading: str) -> None:
            bar.update(task, completed=done, total=total, loading=loading)

        with running(config, address=address, progress=show) as url:
            bar.stop()
            yield url


def greeting(config: AppConfig, url: str) -> str:
    manner = manner_of(config)
    body = json.dumps({"model": config.targets[0].name, **manner.fields(manner.prompts[0]), "max_tokens": 96})
    grpc = f"gRPC on port {config.grpc.port}\n" if config.grpc else ""
    names = ", ".join(target.name for target in config.targets)
    key = " -H 'Authorization: Bearer KEY'" if config.access.keys_file else ""
    return (
        f"{names} at {url}/v1\n{grpc}\n"
        f"curl {url}{manner.route} -H 'Content-Type: application/json'{key} -d {quote(body)}\n\nCtrl-C stops it."
    )


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM end the program like Ctrl-C, overriding Ray's handler."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
