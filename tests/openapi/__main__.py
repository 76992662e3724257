"""Schemathesis over our OpenAPI document, with good data and bad, and all of its checks.

    python -m tests.openapi SCHEMATHESIS [--url URL] [--examples N] [--phases A,B] [--seconds S]

SCHEMATHESIS is the program, which is in an environment of its own (`pip install schemathesis`). Without a URL the code
models of the demo are served by Ray on loopback, with short contexts. Ends with 1 unless every check holds and all
phases came to their end within S seconds. Given a time of its own schemathesis would go round until that is over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.demo_family import CODE
from deployments import cluster
from deployments.config import HttpConfig, load_config
from link.listening import free_port

HERE = Path(__file__).parent
LENGTH = 96  # tokens of a context
PHASES = "examples,coverage,fuzzing"
OPTIONS = ("--checks=all", "--mode=all", "--seed=1", "--no-shrink")
OPTIONS += ("--generation-database=none", "--request-timeout=120", "--continue-on-failure")


@contextmanager
def demo() -> Iterator[str]:
    """The demo's code models on loopback; yields the URL."""
    config = load_config(CODE)
    targets = tuple(target.model_copy(update={"max_model_len": LENGTH}) for target in config.targets)
    http = HttpConfig(port=free_port())
    with cluster.running(config.model_copy(update={"targets": targets, "http": http})) as url:
        yield url


def check(program: str, url: str, examples: int, phases: str, seconds: int) -> int:
    """Prints what schemathesis says, then how often which answer came."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen.json"
        told = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "DRAFTPOOL_SEEN": str(seen)}
        command = [program, "--config-file", str(HERE / "schemathesis.toml"), "run", f"{url}/openapi.json", *OPTIONS]
        command += [f"--max-examples={examples}", f"--phases={phases}"]
        try:
            status = subprocess.run(command, env=os.environ | told, timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            sys.stdout.write(f"not at its end after {seconds} s\n")
            status = 1
        counts: dict[str, int] = json.loads(seen.read_text(encoding="utf-8"))
    for answer, count in sorted(counts.items(), key=lambda one: -one[1]):
        sys.stdout.write(f"{count:6} {answer}\n")
    sys.stdout.write(f"{sum(counts.values())} answers\n")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--url")
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--phases", default=PHASES)
    parser.add_argument("--seconds", type=int, default=1800)
    args = parser.parse_args()
    if args.url:
        return check(args.program, args.url, args.examples, args.phases, args.seconds)
    with demo() as url:
        return check(args.program, url, args.examples, args.phases, args.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
