"""Memory of a served application while thousands of short sampled requests are streamed over HTTP.

Each process of its cluster, and this one, which is the client: its peak, and whether it grows.
"""

from __future__ import annotations

import asyncio
import itertools
from argparse import Namespace
from collections.abc import Sequence

from tqdm import tqdm

from bench.client import LoadClient, RequestTemplate, ServedAnswer
from bench.memory import Growth, MemoryRecorder
from deployments.cluster import running
from deployments.config import AppConfig, HttpConfig
from link.listening import free_port

TEMPERATURE = 0.8


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
