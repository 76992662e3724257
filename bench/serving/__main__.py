"""Question: what does serving cost, in tokens per second against the engine alone, and in memory over thousands of
requests?

    speed     bench/serving/speed.py, over HTTP and the engine alone in turn
    memory    bench/serving/memory.py, every process of the application of the config
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import machine
from bench.arguments import CONFIG, ended, listed, one_of, plain_parser
from bench.memory import growth_table
from bench.serving.memory import measure_served
from bench.serving.speed import measure_speed, speed_table
from bench.workload import HELD_OUT
from cli.arguments import whole
from cli.prompts import read_prompts
from deployments.config import load_config

SPEED, MEMORY = PARTS = ("speed", "memory")


def run(args: Namespace) -> int:
    config = load_config(args.config)
    prompts = [prompt.text for prompt in read_prompts(args.prompts, 0)]
    speed = measure_speed(config, prompts, args) if SPEED in args.parts else []
    memory = measure_served(config, prompts, args) if MEMORY in args.parts else []
    place = machine.describe()
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    report = {"machine": place, "settings": settings}
    report |= {SPEED: [asdict(row) | {"bar": row.bar.as_json()} for row in speed]}
    report |= {MEMORY: [asdict(row) | {"grows": row.grows} for row in memory]}
    tables = ([speed_table(speed)] if speed else []) + ([growth_table("process", memory)] if memory else [])
    text = "\n".join([*tables, machine.footer(place)]) + "\n"
    machine.publish(args.out, report, text)
    fails = [not row.bar.met for row in speed] + [row.grows for row in memory]
    return 1 if any(fails) else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = plain_parser(__doc__, "serving.json")
    add = parser.add_argument
    add("--parts", type=listed(one_of(*PARTS)), default=list(PARTS), help=f"default: {','.join(PARTS)}")
    add("--config", type=Path, default=CONFIG, help="default: the demo family")
    add("--prompts", type=Path, default=HELD_OUT, help="default: held-out code")
    add("--concurrency", type=whole(1), default=8, help="requests under way (default: 8)")
    add("--target", help="for speed: its name in the config (default: the first)")
    add("--num-prompts", type=whole(1), default=32, help="for speed, of one run (default: 32)")
    add("--max-tokens", type=whole(1), default=64, help="for speed (default: 64)")
    add("--pairs", type=whole(1), default=15, help="for speed, repetitions (default: 15)")
    add("--threads", type=whole(1), default=1, help="for speed, of either engine (default: 1)")
    add("--cores", type=whole(0), nargs="+", default=[0], help="for speed, of either engine (default: 0)")
    add("--num-requests", type=whole(1), default=2000, help="for memory (default: 2000)")
    add("--memory-tokens", type=whole(1), default=16, help="for memory, of each request (default: 16)")
    add("--base-after", type=whole(0), default=200, help="for memory, requests (default: 200)")
    add("--every", type=whole(1), default=50, help="for memory, requests between samples (default: 50)")
    return ended("bench.serving", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
