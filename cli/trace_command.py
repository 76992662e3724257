"""`draftpool trace`: what the last rounds of a running server took, as a file that Perfetto opens."""

from __future__ import annotations

import argparse
import http.client
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.arguments import whole
from deployments.direct import opened
from protocol.errors import ConfigError

TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=whole(1, 1024), default=64, help="of each target (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("trace.json"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    trace = asked(args.url, args.rounds)
    num_rounds = sum(event["name"].startswith("round ") for event in trace["traceEvents"])
    if not num_rounds:
        raise ConfigError(f"{args.url} has no rounds to show; ask it for a text first")
    try:
        args.out.write_text(json.dumps(trace), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {args.out}: {error.strerror}; name another file with --out") from None
    Console().print(f"{num_rounds} rounds in {args.out}; open it in Perfetto", highlight=False, soft_wrap=True)
    return 0


def asked(url: str, num_rounds: int) -> dict[str, Any]:
    """Raises ConfigError when no DraftPool server answers there."""
    try:
        with opened(f"{url.rstrip('/')}/debug/trace?rounds={num_rounds}", TIMEOUT_S) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"no server tells its rounds at {url}: {error}; name the URL that serve printed") from None
