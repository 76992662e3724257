"""Question: what does serving cost? Tokens per second over HTTP against the engine alone, in turn (speed.py)."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import machine
from bench.arguments import CONFIG, ended, plain_parser
from bench.serving.speed import measure_speed, speed_table
from bench.workload import HELD_OUT
from cli.arguments import whole
from cli.prompts import read_prompts
from deployments.config import load_config


def run(args: Namespace) -> int:
    prompts = [prompt.text for prompt in read_prompts(args.prompts, 0)]
    speed, place = measure_speed(load_config(args.config), prompts, args), machine.describe()
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    report = {
        "machine": place,
        "settings": settings,
        "speed": [asdict(row) | {"bar": row.bar.as_json()} for row in speed],
    }
    machine.publish(args.out, report, f"{speed_table(speed)}\n{machine.footer(place)}\n")
    return int(not all(row.bar.met for row in speed))


def main(argv: Sequence[str] | None = None) -> int:
    parser = plain_parser(__doc__, "serving.json")
    add = parser.add_argument
    add("--config", type=Path, default=CONFIG, help="default: the demo family")
    add("--prompts", type=Path, default=HELD_OUT, help="default: held-out code")
    add("--concurrency", type=whole(1), default=8, help="requests under way (default: 8)")
    add("--target", help="its name in the config (default: the first)")
    add("--num-prompts", type=whole(1), default=32, help="of one run (default: 32)")
    add("--max-tokens", type=whole(1), default=64, help="default: 64")
    add("--pairs", type=whole(1), default=15, help="repetitions (default: 15)")
    add("--threads", type=whole(1), default=1, help="of either engine (default: 1)")
    add("--cores", type=whole(0), nargs="+", default=[0], help="of either engine (default: 0)")
    return ended("bench.serving", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
