"""Replicas of a served application that are killed one after the other, and how soon others stand in their place."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.app import APP_NAME, POOL_NAME, target_deployment
from tests.deployments.served import Served

INGRESS = "ingress"
POLL_S = 0.25


@dataclass
class Kill:
    """Moments by time.monotonic. whole_s: when all replicas of the deployment answered again."""

    role: str
    deployment: str
    killed_s: float
    whole_s: float | None = None

    @property
    def took_s(self) -> float | None:
        return None if self.whole_s is None else self.whole_s - self.killed_s


class Killer:
    """Kills a random replica of a random role; never one of a deployment that lacks one."""

    def __init__(self, served: Served, rng: random.Random) -> None:
        config = served.config
        self._rng = rng
        self.kills: list[Kill] = []
        self._wanted = {target_deployment(target.name): target.num_replicas for target in config.targets}
        self._roles = {"target": [target_deployment(target.name) for target in config.targets]}
        if config.pool is not None and config.placement == "separate":
            self._wanted[POOL_NAME] = config.pool.num_replicas
            self._roles["draft replica"] = [POOL_NAME]
        self._wanted[INGRESS] = config.ingress.num_replicas
        self._roles[INGRESS] = [INGRESS]

    def run_while(self, is_running: Callable[[], bool], pause_s: tuple[float, float], limit_s: float) -> None:
        """Kills until nothing runs any more, then waits until all are back."""
        due = time.monotonic() + self._rng.uniform(*pause_s)
        while is_running():
            self._look()
            if time.monotonic() >= due and self._kill():
                due = time.monotonic() + self._rng.uniform(*pause_s)
            time.sleep(POLL_S)
        end = time.monotonic() + limit_s
        while any(kill.whole_s is None for kill in self.kills):
            assert time.monotonic() < end, f"not all replicas came back: {self.kills}"
            self._look()
            time.sleep(POLL_S)

    def _look(self) -> None:
        for kill in self.kills:
            if kill.whole_s is None and num_answering(kill.deployment) >= self._wanted[kill.deployment]:
                kill.whole_s = time.monotonic()

    def _kill(self) -> bool:
        broken = {kill.deployment for kill in self.kills if kill.whole_s is None}
        role = self._rng.choice(sorted(self._roles))
        whole = [name for name in self._roles[role] if name not in broken]
        if not whole:
            return False
        deployment = self._rng.choice(whole)
        actor = self._rng.choice(replicas_of(deployment))
        self.kills.append(Kill(role, deployment, time.monotonic()))
        ray.kill(ray.get_actor(actor, namespace="serve"), no_restart=True)
        return True


def replicas_of(deployment: str) -> list[str]:
    """The names of its actors."""
    prefix = f"SERVE_REPLICA::{APP_NAME}#{deployment}#"
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["name"].startswith(prefix))


def num_answering(deployment: str) -> int:
    method = "counts" if deployment == INGRESS else "describe"
    handle = serve.get_deployment_handle(deployment, APP_NAME)
    try:
        answers = list(handle.broadcast(method).results(timeout_s=10, return_exceptions=True))
    except (DeploymentUnavailableError, TimeoutError):
        return 0
    return sum(not isinstance(answer, BaseException) for answer in answers)
