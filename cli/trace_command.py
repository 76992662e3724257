"""`draftpool trace`: writes the timeline of a running server's last rounds to a file for Perfetto."""

from __future__ import annotations

import argparse
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from cli.arguments import whole
from cli.output import say
from deployments.direct import OWN_KEY, open_url
from protocol.errors import ConfigError

TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="URL of the server, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--rounds", type=whole(1, 1024), default=64, help="rounds of each target (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("trace.json"), help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    trace = fetch_trace(args.url, args.rounds)
    num_rounds = sum(event["name"].startswith("round ") for event in trace["traceEvents"])
    if not num_rounds:
        raise ConfigError(f"{args.url} has no rounds to show; ask it for a text first")
    try:
        args.out.write_text(json.dumps(trace), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {args.out}: {error.strerror}; name another file with --out") from None
    say(f"{num_rounds} rounds in {args.out}; open it in Perfetto")
    return 0


def fetch_trace(url: str, num_rounds: int) -> dict[str, Any]:
    """The trace of a server. Raises ConfigError if no DraftPool server answers."""
    try:
        with open_url(f"{url.rstrip('/')}/debug/trace?rounds={num_rounds}", TIMEOUT_S) as reply:
            trace: dict[str, Any] = json.load(reply)
            return trace
    except HTTPError as error:
        if error.code == 401:
            raise ConfigError(f"{url} lets operators in only with an admin key; set {OWN_KEY} to one") from None
        raise ConfigError(f"{url} answers {error}; give the URL that serve printed") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"no DraftPool server answers at {url}: {error}; give the URL that serve printed") from None
