"""The typed YAML config: everything that an operator may set, and nothing else.

Unknown keys are refused. A model path that is relative belongs to the folder of its config file; one that is
neither a directory there nor begins with ".", "/" or "~" is a Hugging Face hub id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from deployments.config_errors import explain
from deployments.config_replica import Listener, Placement, Replicas, Weights
from deployments.config_section import Count, Port, Seconds, Section
from deployments.config_speculation import Speculation
from protocol.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"  # that ship with the project
POOL_PLACE = ("num_replicas", "threads", "cores", "num_gpus")  # of a pool that has a place of its own
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class TargetConfig(Placement, Weights):
    """One target. speculation null or off: plain decoding.

    deterministic: true refuses to start unless a row's result depends on that row alone, bit for bit; null takes
    that wherever it can be had, which is with native kernels.
    """

    name: Name
    deterministic: bool | None = None
    max_batch: Count = 16
    max_queue: Annotated[int, Field(ge=0)] = 64
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    prefill_chunk: Count = 512
    speculation: Speculation | None = None

    @field_validator("speculation", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return None if value in (False, "off") else value


class PoolConfig(Listener, Placement, Weights):
    """The draft pool. Targets stream to its replicas.

    page_size: positions; a branch takes a page of its own for a few tokens. rows_per_target: sequences that one target
    replica may have there, at most; null: as many as there are rows. streams: how many of the drafter's stream heads
    are used; auto: as many as turn out to pay.
    """

    page_size: Count = 16
    max_rows: Count = 64
    rows_per_target: Count | None = None
    streams: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    prefill_chunk: Count = 256
    sequence_ttl_s: Seconds = 120.0


class HttpConfig(Section):
    """request_timeout_s: what a completion may take, null for any time. cors_origins: the sites whose pages may call,
    such as https://chat.example.org, or "*" for all.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    request_timeout_s: Seconds | None = None
    cors_origins: tuple[Origin, ...] = ()


class GrpcConfig(Section):
    """Ray Serve's gRPC proxy listens on every interface and without TLS; leave the section out to turn it off."""

    port: Port = 9000
    request_timeout_s: Seconds | None = None


class IngressConfig(Listener, Replicas):
    """Targets stream tokens to its replicas. join_ms: how long tokens of a stream may wait for more, under load.
    silence_s: after which a request is given up whose replica does not say that it has it.
    """

    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    join_ms: Annotated[float, Field(ge=0, le=1000)] = 20.0
    silence_s: Seconds = 20.0


class AppConfig(Section):
    """placement: separate, where the pool has threads and devices of its own; or colocated, where every target replica
    has the pool's drafter in its own process, and both have all of its threads in turn.
    """

    placement: Literal["separate", "colocated"] = "separate"
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]
    pool: PoolConfig | None = None
    ingress: IngressConfig = IngressConfig()
    http: HttpConfig = HttpConfig()
    grpc: GrpcConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [target.name for target in self.targets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two targets are called {repeated[0]}; give each its own name")
        speculating = [target.name for target in self.targets if target.speculation]
        if speculating and self.pool is None:
            raise ValueError(f"target {speculating[0]} speculates but there is no pool; add one, or speculation: off")
        if self.placement == "colocated":
            self._check_colocated()
        return self

    def _check_colocated(self) -> None:
        ahead = [target.name for target in self.targets if target.speculation and target.speculation.mirror]
        if ahead:
            raise ValueError(
                f"mirror of target {ahead[0]} drafts while the target verifies, and placement: colocated lets one work "
                "at a time; set mirror: off, or placement: separate"
            )
        if self.pool and (given := [key for key in POOL_PLACE if getattr(self.pool, key) != _default(key)]):
            raise ValueError(
                f"pool.{given[0]} says nothing with placement: colocated, where drafts take a target's threads and "
                "device; leave it out"
            )


def _default(key: str) -> object:
    return PoolConfig.model_fields[key].get_default()


def load_config(path: Path) -> AppConfig:
    """Raises ConfigError naming file, key, value and remedy."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    try:
        config = AppConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, AppConfig)}") from None
    return resolve_paths(config, path.parent)


def resolve_paths(config: AppConfig, base: Path) -> AppConfig:
    targets = tuple(target.model_copy(update={"path": _resolve(target.path, base)}) for target in config.targets)
    pool = config.pool and config.pool.model_copy(update={"path": _resolve(config.pool.path, base)})
    return config.model_copy(update={"targets": targets, "pool": pool})


def _resolve(path: str, base: Path) -> str:
    given = Path(path).expanduser()
    if given.is_absolute():
        return str(given)
    beside = (base / given).resolve()
    return str(beside) if beside.is_dir() or path.startswith(".") else path
