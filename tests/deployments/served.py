"""A served application as tests see it: its URL, an OpenAI client, what its replicas report, and the plain oracle."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import ray
import torch
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from deployments import cluster
from deployments.app import APP_NAME, POOL_NAME, target_deployment
from deployments.config import AppConfig
from link.discovery import PoolMember
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.policy import Off
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import load_target
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.harness import wait_until
from tests.deployments.head import Head

PROMPT = "def add(a, b):\n    return"
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, seed=1234)


@dataclass
class Served:
    config: AppConfig
    url: str
    statuses_at_start: list[int] = field(default_factory=list)
    loading_at_start: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def complete(self, model: str, prompt: str = PROMPT, **settings: Any) -> Any:
        extra = {"ignore_eos": True, "return_token_ids": True, "top_k": settings.pop("top_k", 0)}
        return self.client.completions.create(model=model, prompt=prompt, extra_body=extra, **settings)

    def tokens(self, model: str, sampling: SamplingParams, max_tokens: int) -> tuple[int, ...]:
        answer = self.complete(model, **fields_of(sampling, max_tokens))
        return tuple(answer.choices[0].model_dump()["token_ids"])

    def streamed(self, model: str, sampling: SamplingParams, max_tokens: int) -> tuple[tuple[int, ...], str]:
        ids: list[int] = []
        text = ""
        for chunk in self.complete(model, stream=True, **fields_of(sampling, max_tokens)):
            for choice in chunk.choices:
                ids += choice.model_dump()["token_ids"]
                text += choice.text
        return tuple(ids), text

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}") as response:
            return json.load(response)

    def target(self, model: str, method: str) -> dict[str, Any]:
        (answer,) = self.targets(model, method)
        return answer

    def targets(self, model: str, method: str) -> list[dict[str, Any]]:
        """What each living replica of a target says, in the same order whatever is asked."""
        answers = self._broadcast(target_deployment(model), method)
        return [dict(answer) for answer in answers if not isinstance(answer, BaseException)]

    def pool(self) -> list[PoolMember]:
        return [answer for answer in self._broadcast(POOL_NAME, "describe") if isinstance(answer, PoolMember)]

    def kill(self, deployment: str, incarnation: str) -> None:
        unique_id = incarnation.rpartition("-")[2]
        actor = ray.get_actor(f"SERVE_REPLICA::{APP_NAME}#{deployment}#{unique_id}", namespace="serve")
        ray.kill(actor, no_restart=True)

    def kill_draft_replica(self, incarnation: str) -> None:
        self.kill(POOL_NAME, incarnation)

    def kill_target(self, model: str) -> None:
        self.kill(target_deployment(model), self.target(model, "describe")["incarnation"])

    def health(self, timeout: float = 10) -> int:
        """What /ready answers, or 0 while there is no answer: Serve holds requests until an ingress replica runs."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=timeout) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except (TimeoutError, OSError):
            return 0

    def wait_until_drafting(self) -> None:
        names = [target.name for target in self.config.targets]
        wait_until(lambda: all(told["draft_replica"] for name in names for told in self.targets(name, "describe")))

    def wait_until_idle(self) -> None:
        """Every page is free again, at the targets and at the pool, and no sequence is open."""
        names = [target.name for target in self.config.targets]
        has_pool = self.config.pool is not None and self.config.placement == "separate"

        def idle() -> bool:
            engines = [told for name in names for told in self.targets(name, "stats")]
            pages = all(engine["num_free_pages"] == engine["num_pages"] for engine in engines)
            queues = all(engine["num_running"] == engine["num_waiting"] == 0 for engine in engines)
            pools = [member.stats for member in self.pool()] if has_pool else []
            return pages and queues and all(s.num_sequences == 0 and s.num_free_pages == s.num_pages for s in pools)

        wait_until(idle)

    def _broadcast(self, deployment: str, method: str) -> list[Any]:
        handle = serve.get_deployment_handle(deployment, APP_NAME)
        try:
            return list(handle.broadcast(method).results(timeout_s=10, return_exceptions=True))
        except DeploymentUnavailableError:  # no replica is there
            return []


@contextmanager
def plain_engine(directory: Path) -> Iterator[Engine]:
    model = load_target(directory, dtype=torch.float32, num_positions=2048, page_size=16)
    with Engine(model, Off(), None, EngineConfig()) as engine:
        yield engine


@contextmanager
def deployed(config: AppConfig, head: Head) -> Iterator[Served]:
    """An application on the tests' cluster, which drafts when the block begins and is idle when it ends."""
    app = Served(config, head.url)
    with cluster.running(config, address=head.address):
        app.wait_until_drafting()
        yield app
        app.wait_until_idle()
        app.client.close()


def expected(engine: Engine, max_tokens: int, sampling: SamplingParams, prompt: str = PROMPT) -> tuple[int, ...]:
    """What the plain loop commits, EOS ignored."""
    ids = tuple(tiny_tokenizer().encode(prompt))
    (completion,) = complete(engine, [GenerateRequest("oracle", ids, sampling, StopRules(max_tokens))])
    return completion.token_ids


def fields_of(sampling: SamplingParams, max_tokens: int) -> dict[str, Any]:
    """A request's fields."""
    names = ("temperature", "top_p", "top_k", "seed")
    return {"max_tokens": max_tokens} | {name: getattr(sampling, name) for name in names}


def text_of(token_ids: tuple[int, ...]) -> str:
    return str(tiny_tokenizer().decode(list(token_ids), skip_special_tokens=True))
