"""Builds the Ray Serve application.

    ingress --handle--> one deployment per target --broadcast, to find it--> the draft pool
       ^                                          ======socket, to draft===>      ^
       |<==========gRPC stream, of tokens==========                               |
       '---------------------broadcast, for its statistics------------------------'

With placement: colocated there is no pool deployment; every target replica has its own drafter.

Serve can also fill `config` from the `args` of its config file (import_path deployments.app:build). It reads the
annotation at run time, so this module must not postpone annotations.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deployments.autoscaling import BusyPolicy
from deployments.config import AppConfig, IngressConfig, TargetConfig, with_paths
from deployments.config_replica import Placement
from deployments.config_speculation import AdaptiveSpeculation
from deployments.descriptions import key_of
from deployments.ingress import Ingress
from deployments.placement import pool_of
from deployments.pool import DraftPoolReplica
from deployments.target import TargetReplica
from model.files import pin_revision

APP_NAME = "draftpool"
POOL_NAME = "draft-pool"
# Ray shows every GPU to an actor that requests none. With many malloc arenas, freed memory stays in the process.
INGRESS_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "2"}
HEALTH_EVERY_S = 2.0  # Serve finds out that a replica has died when it asks for its health; its default is 10 s
LOOK_BACK_S = 12.0  # over which Serve averages loads; it wants more than the 10 s in which replicas tell theirs
INGRESS_MARGIN = 64  # requests that an ingress accepts beyond its targets' limits, to answer them with 429


def build(config: AppConfig) -> Application:
    config = with_paths(config, pin_revision)  # so that all replicas load the same commit, also when replaced
    measured = any(isinstance(target.speculation, AdaptiveSpeculation) for target in config.targets)
    apart = config.pool if config.placement == "separate" else None
    told = config.telemetry
    pool = deployment(DraftPoolReplica, pool_options(config)).bind(apart, measured, told) if apart else None
    targets = {
        target.name: deployment(TargetReplica, target_options(target)).bind(target, pool, pool_of(config, target), told)
        for target in config.targets
    }
    tokenizers = {target.name: target.path for target in config.targets}
    keys = {target.name: key_of(target) for target in config.targets}
    ingress: Any = Ingress  # already a deployment; its decorator has no types
    app: Application = ingress.options(**ingress_options(config)).bind(
        targets, tokenizers, config.ingress, pool, config.http, config.access, held(config), told, keys
    )
    return app


def deployment(replica: type, options: dict[str, Any]) -> Any:
    """A deployment of a plain replica class."""
    untyped: Any = serve.deployment(replica)
    return untyped.options(**options)


def pool_options(config: AppConfig) -> dict[str, Any]:
    assert config.pool is not None
    return {
        "name": POOL_NAME,
        **replicas(config.pool),
        "max_ongoing_requests": 100,  # descriptions only
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 5,
        "health_check_period_s": HEALTH_EVERY_S,
        "ray_actor_options": actor_options(config.pool),
    }


def target_options(target: TargetConfig) -> dict[str, Any]:
    """Serve options of a target. The engine refuses what exceeds its queue, so Serve's limits are larger."""
    held_by_one = target.max_batch + target.max_queue
    return {
        "name": target_deployment(target.name),
        **replicas(target, target.max_batch),
        "max_ongoing_requests": held_by_one + INGRESS_MARGIN,
        "max_queued_requests": held_by_one * target.most_replicas + INGRESS_MARGIN,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 60,
        "health_check_period_s": HEALTH_EVERY_S,
        "ray_actor_options": actor_options(target),
    }


def held(config: AppConfig) -> dict[str, int]:
    """Requests that all replicas of a target hold, by its name."""
    return {target.name: (target.max_batch + target.max_queue) * target.most_replicas for target in config.targets}


def ingress_options(config: AppConfig) -> dict[str, Any]:
    ingress: IngressConfig = config.ingress
    return {
        "num_replicas": ingress.num_replicas,
        "max_ongoing_requests": sum(held(config).values()) + INGRESS_MARGIN,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 60,
        "health_check_period_s": HEALTH_EVERY_S,
        "ray_actor_options": {
            "num_cpus": ingress.num_cpus,
            "resources": ingress.resources,
            "runtime_env": {"env_vars": INGRESS_ENVIRONMENT},
        },
    }


def replicas(placement: Placement, places: int = 0) -> dict[str, Any]:
    """How many. places: requests that a replica works on at once."""
    given = placement.autoscaling
    if given is None:
        return {"num_replicas": placement.num_replicas}
    kwargs = {"busy": given.busy, "calm": given.calm, "places": places}
    policy: Any = AutoscalingPolicy  # its constructor has no types
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=given.min_replicas,
            max_replicas=given.max_replicas,
            upscale_delay_s=given.up_after_s,
            downscale_delay_s=given.down_after_s,
            look_back_period_s=LOOK_BACK_S,
            policy=policy(policy_function=BusyPolicy, policy_kwargs=kwargs),
        )
    }


def actor_options(placement: Placement) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": placement.threads, "resources": placement.resources}
    if placement.num_gpus:
        return options | {"num_gpus": placement.num_gpus}
    return options | {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}


def target_deployment(name: str) -> str:
    return f"target-{name}"
