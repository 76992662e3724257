"""Memory while thousands of requests go through: each process's peak, and whether it grows.

    served    the application of a config, all targets and the pool, streamed over HTTP; each process of its cluster,
              and this one, which is the client
    offline   the engine of the config's first target with the drafter, in this process and without Ray

Short requests at temperature 0.8, EOS ignored. `bench/resident.py` says what growth is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.arrivals import closed_loop
from bench.load_client import Ask, Client, Outcome, drive
from bench.prompts import HELD_OUT
from bench.resident import Growth, Recorder, table
from cli.arguments import whole
from cli.demo_command import CONFIG
from cli.prompts import read_prompts
from deployments.cluster import running
from deployments.config import AppConfig, HttpConfig, load_config
from deployments.local import complete, draft_policy, open_engine, open_worker
from deployments.process import DTYPES, pin_process, pool_positions
from deployments.target import load_model
from link.listening import free_port
from model.files import resolve
from protocol.errors import DraftPoolError
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.engine import Engine, EngineConfig

RESULT = machine.ROOT / "bench/results/memory.json"
TIMEOUT_S = 120.0
TEMPERATURE = 0.8
LENGTH = 4  # of drafts, offline


def measure_served(config: AppConfig, prompts: Sequence[str], args: argparse.Namespace) -> list[Growth]:
    config = config.model_copy(update={"http": HttpConfig(port=free_port()), "grpc": None})
    with running(config) as url:
        recorder = asyncio.run(load(url, [target.name for target in config.targets], prompts, args))
    return recorder.result(args.base_after)


async def load(url: str, models: Sequence[str], prompts: Sequence[str], args: argparse.Namespace) -> Recorder:
    """Raises RuntimeError when requests failed, for then it was another load."""
    recorder, ended = Recorder(), list[Outcome]()
    schedule = closed_loop(dict.fromkeys(models, 1.0), len(prompts), num_requests=args.num_requests, seed=0)

    def on_outcome(outcome: Outcome) -> None:
        bar.update()
        ended.append(outcome)
        if len(ended) % args.every == 0:
            recorder.sample(len(ended))

    ask = Ask(args.max_tokens, TEMPERATURE)
    with tqdm(total=args.num_requests, desc="served") as bar:
        async with Client(url, prompts, ask, connections=args.concurrency, timeout_s=TIMEOUT_S) as client:
            await drive(schedule, client.send, args.concurrency, on_outcome)
    if errors := [outcome.error for outcome in ended if outcome.error is not None]:
        raise RuntimeError(f"{len(errors)} of {args.num_requests} requests failed, the first by {errors[0]}")
    return recorder


def measure_offline(config: AppConfig, prompts: Sequence[str], args: argparse.Namespace) -> list[Growth]:
    """Batches of `every` requests at a time, decoded `concurrency` at once."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(config.targets[0].path))
    ids = [tuple(tokenizer.encode(prompt)) for prompt in prompts]
    recorder = Recorder()
    with offline_engine(config, args) as engine:
        for first in tqdm(range(0, args.num_requests, args.every), "offline"):
            complete(engine, requests(ids, first, args))
            recorder.sample(first + args.every)
    return recorder.result(args.base_after)


def requests(ids: Sequence[tuple[int, ...]], first: int, args: argparse.Namespace) -> list[GenerateRequest]:
    stop = StopRules(args.max_tokens)
    return [
        GenerateRequest(str(number), ids[number % len(ids)], SamplingParams(TEMPERATURE, seed=number), stop)
        for number in range(first, first + args.every)
    ]


@contextmanager
def offline_engine(config: AppConfig, args: argparse.Namespace) -> Iterator[Engine]:
    target, pool, worker = config.targets[0], config.pool, None
    pin_process(target)
    if pool is not None:
        drafter = resolve(pool.path)
        worker = open_worker(
            drafter,
            dtype=DTYPES[pool.dtype],
            num_positions=pool_positions(pool, drafter),
            page_size=pool.page_size,
            max_rows=args.concurrency,
        )
    engine_config = EngineConfig(args.concurrency, args.every, target.prefill_chunk)
    policy = draft_policy(worker if target.speculation else None, None, LENGTH)
    engine = open_engine(load_model(target), worker, policy, engine_config)
    try:
        yield engine
    finally:
        engine.stop()


Part = Callable[[AppConfig, Sequence[str], argparse.Namespace], list[Growth]]
PARTS = MappingProxyType[str, Part]({"served": measure_served, "offline": measure_offline})


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        config = load_config(args.config)
        prompts = [prompt.text for prompt in read_prompts(args.prompts, 0)]
        results = {part: PARTS[part](config, prompts, args) for part in ([args.only] if args.only else PARTS)}
    except DraftPoolError as error:
        sys.stderr.write(f"bench.memory: {error}\n")
        return 2
    settings = {"unit": "MiB", "num_requests": args.num_requests, "base_after": args.base_after}
    settings |= {"concurrency": args.concurrency, "max_tokens": args.max_tokens}
    rows = {part: [asdict(row) | {"grows": row.grows} for row in found] for part, found in results.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": machine.describe(), **settings, **rows}, indent=1) + "\n")
    sys.stdout.write("\n".join(table(part, found) for part, found in results.items()))
    return 1 if any(row.grows for found in results.values() for row in found) else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", choices=sorted(PARTS), help="default: both")
    made.add_argument("--config", type=Path, default=CONFIG, help="default: the demo family")
    made.add_argument("--prompts", type=Path, default=HELD_OUT, help="default: held-out code")
    made.add_argument("--num-requests", type=whole(1), default=2000, help="default: %(default)s")
    made.add_argument("--base-after", type=whole(0), default=200, help="requests (default: %(default)s)")
    made.add_argument("--every", type=whole(1), default=50, help="requests between samples (default: %(default)s)")
    made.add_argument("--concurrency", type=whole(1), default=8, help="default: %(default)s")
    made.add_argument("--max-tokens", type=whole(1), default=16, help="default: %(default)s")
    made.add_argument("--out", type=Path, default=RESULT)
    return made


if __name__ == "__main__":
    sys.exit(main())
