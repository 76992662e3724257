"""The typed YAML config. Unknown keys are refused.

A relative model path is resolved against the folder of the config file. A path that is not a directory there and does
not begin with ".", "/", "~" or "package:" is a Hugging Face hub id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from deployments.config_access import AccessConfig
from deployments.config_errors import explain
from deployments.config_replica import Listener, Placement, Replicas, Weights
from deployments.config_section import Count, Port, Seconds, Section
from deployments.config_speculation import Speculation
from deployments.config_telemetry import TelemetryConfig
from protocol.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"  # configs that ship with the project
POOL_PLACE = ("num_replicas", "threads", "cores", "num_gpus", "autoscaling")  # keys that only a separate pool has
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class TargetConfig(Placement, Weights):
    """One target.

    deterministic: true refuses to start unless the result of a row is independent of the other rows, bit for bit; null
    accepts either. Native kernels are deterministic. max_batch: sequences decoded at once. max_queue: requests that may
    wait. max_wait_s: seconds; a request whose first token would take longer is refused with 429; null: none is.
    max_model_len: tokens; null: what the checkpoint allows. prefill_chunk: prompt tokens per pass. speculation:
    null or off, or of policy off: plain decoding. count_tokens: counts how often each token is written, for
    `draftpool trim`.
    """

    name: Name
    deterministic: bool | None = None
    max_batch: Count = 16
    max_queue: Annotated[int, Field(ge=0)] = 64
    max_wait_s: Seconds | None = None
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    prefill_chunk: Count = 512
    speculation: Speculation | None = None
    count_tokens: bool = False

    @field_validator("speculation", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        named = value.get("policy") if isinstance(value, Mapping) and len(value) == 1 else value
        return None if named in (False, "off") else value


class PoolConfig(Listener, Placement, Weights):
    """The draft pool.

    page_size: positions per page. max_rows: sequences per
    replica. rows_per_target: sequences that one target replica may hold; null: max_rows. prefill_chunk: context tokens
    per pass. sequence_ttl_s: seconds after which an idle sequence is dropped.
    """

    page_size: Count = 16
    max_rows: Count = 64
    rows_per_target: Count | None = None
    prefill_chunk: Count = 256
    sequence_ttl_s: Seconds = 120.0


class HttpConfig(Section):
    """The HTTP API.

    request_timeout_s: upper limit for a completion; null: none. cors_origins: sites whose pages may call the API, such
    as https://chat.example.org; "*" for all. heartbeat_s: a stream that has been silent for so long gets a comment, so
    that nobody in between takes it for dead; null: none.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    request_timeout_s: Seconds | None = None
    cors_origins: tuple[Origin, ...] = ()
    heartbeat_s: Seconds | None = None


class GrpcConfig(Section):
    """The gRPC API. Ray Serve's proxy listens on every interface, without TLS. Without this section it is off.

    reflection: whether anybody, also without a key, may ask the proxy which services there are.
    """

    port: Port = 9000
    request_timeout_s: Seconds | None = None
    reflection: bool = False


class IngressConfig(Listener, Replicas):
    """The ingress. Targets stream tokens to its replicas.

    join_ms: how long tokens of a stream may wait for more, under load. silence_s: seconds after which a request lost
    its replica if none confirms that it has it. reissues: replicas that a request may lose and still go on at another;
    0: none. recover_s: seconds that it may look for one.
    """

    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    join_ms: Annotated[float, Field(ge=0, le=1000)] = 20.0
    silence_s: Seconds = 20.0
    reissues: Annotated[int, Field(ge=0)] = 5
    recover_s: Seconds = 120.0


class AppConfig(Section):
    """The whole application.

    placement: separate: the pool has its own threads and devices; colocated: every target replica runs the drafter in
    its own process, and target and drafter use all of its threads in turn.
    """

    placement: Literal["separate", "colocated"] = "separate"
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]
    pool: PoolConfig | None = None
    ingress: IngressConfig = IngressConfig()
    http: HttpConfig = HttpConfig()
    grpc: GrpcConfig | None = None
    access: AccessConfig = AccessConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

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
        ahead = [target.name for target in self.targets if target.speculation and target.speculation.ahead]
        if ahead:
            raise ValueError(
                f"target {ahead[0]} is to be drafted for while it verifies, but with placement: colocated that happens "
                "in turn; leave ahead: on out, or set placement: separate"
            )
        if self.pool and (given := [key for key in POOL_PLACE if getattr(self.pool, key) != _default(key)]):
            raise ValueError(
                f"pool.{given[0]} has no effect with placement: colocated, where drafts use the target's threads and "
                "device; leave it out"
            )


def _default(key: str) -> object:
    return PoolConfig.model_fields[key].get_default()


def load_config(path: Path) -> AppConfig:
    """Reads and checks a config file. Raises ConfigError that names file, key, value and remedy."""
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
    config = config.model_copy(update={"access": config.access.beside(path.parent)})
    return with_paths(config, lambda model_path: _resolve(model_path, path.parent))


def with_paths(config: AppConfig, change: Callable[[str], str]) -> AppConfig:
    """The config with the changed path of every model."""
    targets = tuple(target.model_copy(update={"path": change(target.path)}) for target in config.targets)
    pool = config.pool and config.pool.model_copy(update={"path": change(config.pool.path)})
    return config.model_copy(update={"targets": targets, "pool": pool})


def _resolve(path: str, base: Path) -> str:
    given = Path(path).expanduser()
    if given.is_absolute():
        return str(given)
    beside = (base / given).resolve()
    return str(beside) if beside.exists() or path.startswith(".") else path
