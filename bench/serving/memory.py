"""Memory while thousands of short sampled requests go through: each process's peak, and whether it grows.

served    the application of a config, all targets and the pool, streamed over HTTP; each process of its cluster,
          and this one, which is the client
offline   the engine of the config's first target with the drafter, in this process and without Ray
"""

from __future__ import annotations

import asyncio
import itertools
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm
from transformers import AutoTokenizer

from bench.client import LoadClient, RequestTemplate, ServedAnswer
from bench.memory import Growth, MemoryRecorder
from deployments.cluster import running
from deployments.config import AppConfig, HttpConfig
from deployments.local import draft_policy, open_engine, open_worker
from deployments.models import load_model
from deployments.process import DTYPES, pin_process, pool_positions
from link.listening import free_port
from model.files import resolve
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.complete import complete
from targets.engine import Engine, EngineConfig

TEMPERATURE = 0.8
LENGTH = 4  # of drafts, offline


def measure_served(config: AppConfig, prompts: Sequence[str], args: Namespace) -> list[Growth]:
    config = config.model_copy(update={"http": HttpConfig(port=free_port()), "grpc": None})
    with running(config) as url:
        recorder = asyncio.run(load(url, [target.name for target in config.targets], prompts, args))
    return recorder.result(args.base_after)


async def load(url: str, models: Sequence[str], prompts: Sequence[str], args: Namespace) -> MemoryRecorder:
    """Requests go to the targets in turn. Raises RequestFailed."""
    recorder, num_done = MemoryRecorder(), itertools.count(1)

    def on_answer(answer: ServedAnswer) -> None:
        bar.update()
        done = next(num_done)
        if done % args.every == 0:
            recorder.sample(done)

    ask = RequestTemplate(prompts, args.memory_tokens, TEMPERATURE)
    requests = zip(itertools.cycle(models), range(args.num_requests), strict=False)
    with tqdm(total=args.num_requests, desc="served") as bar:
        async with LoadClient(url, args.concurrency) as client:
            await client.closed_loop(ask, requests, args.concurrency, on_answer)
    return recorder


def measure_offline(config: AppConfig, prompts: Sequence[str], args: Namespace) -> list[Growth]:
    """Batches of `every` requests at a time, decoded `concurrency` at once."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(config.targets[0].path))
    ids = [tuple(tokenizer.encode(prompt)) for prompt in prompts]
    recorder = MemoryRecorder()
    with offline_engine(config, args) as engine:
        for first in tqdm(range(0, args.num_requests, args.every), "offline"):
            complete(engine, requests(ids, first, args))
            recorder.sample(first + args.every)
    return recorder.result(args.base_after)


def requests(ids: Sequence[tuple[int, ...]], first: int, args: Namespace) -> list[GenerateRequest]:
    stop = StopRules(args.memory_tokens)
    return [
        GenerateRequest(str(number), ids[number % len(ids)], SamplingParams(TEMPERATURE, seed=number), stop)
        for number in range(first, first + args.every)
    ]


@contextmanager
def offline_engine(config: AppConfig, args: Namespace) -> Iterator[Engine]:
    target, pool, worker = config.targets[0], config.pool, None
    pin_process(target)
    if pool is not None and target.speculation:
        drafter = resolve(pool.path)
        worker = open_worker(
            drafter,
            dtype=DTYPES[pool.dtype],
            num_positions=pool_positions(pool, drafter),
            page_size=pool.page_size,
            max_rows=args.concurrency,
        )
    engine_config = EngineConfig(args.concurrency, args.every, target.prefill_chunk)
    engine = open_engine(load_model(target), worker, draft_policy(worker, None, LENGTH), engine_config)
    try:
        yield engine
    finally:
        engine.stop()
