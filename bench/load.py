"""Load on a served application: Poisson arrivals at a rate, or a fixed number of requests under way, mixed targets.

    python -m bench.load --url URL --targets large:3,small:1 --rate 4 --duration 30 --prompts F.jsonl --json
    python -m bench.load --url URL --targets large --concurrency 8 --num-requests 200 --no-stream

The client is one process with an event loop. It holds at most --max-in-flight requests open (--concurrency in the
closed loop); what is due beyond that waits, and the wait counts as latency. Any OpenAI-compatible server will do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from bench import machine
from bench.arrivals import Arrival, closed_loop, parse_targets, poisson
from bench.load_client import Ask, Client, Outcome, drive
from bench.load_report import Limits, Summary, summarize, table
from bench.prompts import HELD_OUT
from cli.arguments import seed, whole
from cli.prompts import read_prompts
from protocol.errors import ConfigError

WARM_UP = 2  # uncounted requests to each target: first passes pick kernels and open streams
ALL = "all targets"


async def run(args: argparse.Namespace, weights: Mapping[str, float], prompts: Sequence[str]) -> list[Outcome]:
    """Raises ConfigError when the server is not there or has no such target."""
    ask = Ask(args.max_tokens, args.temperature, args.seed, not args.stop_at_eos, not args.no_stream)
    places = args.concurrency or args.max_in_flight
    async with Client(args.url, prompts, ask, connections=places, timeout_s=args.timeout) as client:
        await check_server(client, args.url, weights)
        await drive([Arrival(model, 0) for model in weights] * WARM_UP, client.send, places)
        return await drive(schedule(args, weights, len(prompts)), client.send, places)


async def check_server(client: Client, url: str, weights: Mapping[str, float]) -> None:
    try:
        served = await client.models()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"--url {url}: {error}; start a server with `draftpool serve CONFIG` first") from None
    if missing := sorted(set(weights) - set(served)):
        raise ConfigError(f"--targets: {missing[0]!r} is not served at {url}; it has {', '.join(served)}")


def schedule(args: argparse.Namespace, weights: Mapping[str, float], num_prompts: int) -> list[Arrival]:
    if args.concurrency:
        return closed_loop(weights, num_prompts, num_requests=args.num_requests, seed=args.seed)
    return poisson(weights, num_prompts, rate=args.rate, duration_s=args.duration, seed=args.seed)


def summaries(outcomes: Sequence[Outcome], weights: Mapping[str, float], limits: Limits) -> dict[str, Summary]:
    """Of each target, and of all together."""
    rows = {name: summarize([o for o in outcomes if o.arrival.model == name], limits) for name in weights}
    return {ALL: summarize(outcomes, limits)} | rows


def report(args: argparse.Namespace, weights: Mapping[str, float], rows: Mapping[str, Summary]) -> dict[str, Any]:
    closed = {"concurrency": args.concurrency, "num_requests": args.num_requests}
    opened = {"rate": args.rate, "duration_s": args.duration, "max_in_flight": args.max_in_flight}
    settings = {"url": args.url, "targets": dict(weights), "arrivals": "closed" if args.concurrency else "poisson"}
    settings |= closed if args.concurrency else opened
    settings |= {"max_tokens": args.max_tokens, "temperature": args.temperature, "stream": not args.no_stream}
    settings |= {"ttft_limit_ms": args.ttft_ms, "tpot_limit_ms": args.tpot_ms, "seed": args.seed}
    return {"machine": machine.describe(), **settings, "results": {name: asdict(row) for name, row in rows.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        weights = parse_targets(args.targets)
        prompts = [prompt.text for prompt in read_prompts(args.prompts, args.seed)]
        outcomes = asyncio.run(run(args, weights, prompts))
    except ConfigError as error:
        sys.stderr.write(f"bench.load: {error}\n")
        return 2
    limits = Limits(args.ttft_ms, args.tpot_ms)
    rows = summaries(outcomes, weights, limits)
    sys.stdout.write(json.dumps(report(args, weights, rows)) + "\n" if args.json else table(rows, limits))
    return 0 if rows[ALL].num_completed == len(outcomes) else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    made.add_argument("--targets", required=True, help="model ids with weights: large,small or large:3,small:1")
    made.add_argument("--prompts", type=Path, default=HELD_OUT, help='{"prompt": ...} lines (default: held-out code)')
    made.add_argument("--max-tokens", type=whole(1), default=64, help="default: %(default)s")
    made.add_argument("--stop-at-eos", action="store_true", help="default: on to --max-tokens")
    made.add_argument("--temperature", type=float, default=0.0, help="default: %(default)s")
    made.add_argument("--seed", type=seed, default=0, help="of arrivals and of sampling (default: %(default)s)")
    made.add_argument("--no-stream", action="store_true", help="answers come whole: no TTFT, TPOT and goodput")
    mode = made.add_mutually_exclusive_group(required=True)
    mode.add_argument("--rate", type=_positive, help="Poisson arrivals, requests a second")
    mode.add_argument("--concurrency", type=whole(1), help="closed loop: requests under way")
    made.add_argument("--duration", type=_positive, default=30.0, help="seconds of arrivals (default: %(default)s)")
    made.add_argument("--max-in-flight", type=whole(1), default=256, help="default: %(default)s")
    made.add_argument("--num-requests", type=whole(1), default=200, help="of a closed loop (default: %(default)s)")
    made.add_argument("--ttft-ms", type=_positive, default=500.0, help="limit of goodput (default: %(default)s)")
    made.add_argument("--tpot-ms", type=_positive, default=50.0, help="limit of goodput (default: %(default)s)")
    made.add_argument("--timeout", type=_positive, default=120.0, help="seconds without a byte (default: %(default)s)")
    made.add_argument("--json", action="store_true", help="one line of JSON with machine, commit and command")
    return made


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
