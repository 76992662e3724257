"""`draftpool trace`: writes the timeline of a running server's last rounds to a file for Perfetto."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cli.arguments import whole
from cli.output import say
from cli.server import ask
from protocol.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="URL of the server, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--rounds", type=whole(1, 1024), default=64, help="rounds of each target (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("trace.json"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    trace = ask(args.url, f"/debug/trace?rounds={args.rounds}")
    num_rounds = sum(event["name"].startswith("round ") for event in trace["traceEvents"])
    if not num_rounds:
        raise ConfigError(f"{args.url} has no rounds to show; ask it for a text first")
    try:
        args.out.write_text(json.dumps(trace), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {args.out}: {error.strerror}; name another file with --out") from None
    say(f"{num_rounds} rounds in {args.out}; open it in Perfetto")
    return 0
