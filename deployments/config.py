"""The typed YAML config: everything that an operator may set, and nothing else.

Unknown keys are refused. A model path that is relative belongs to the folder of its config file; one that is
neither a directory there nor begins with ".", "/" or "~" is a Hugging Face hub id.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from deployments.config_errors import explain
from protocol.errors import ConfigError
from protocol.limits import MAX_FAN_OUT, MAX_LENGTH
from protocol.plan import Mode

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
POOL_PLACE = ("num_replicas", "threads", "cores", "num_gpus")  # of a pool that has a place of its own
Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


def _ascending(exits: tuple[int, ...]) -> tuple[int, ...]:
    if list(exits) != sorted(set(exits)):
        raise ValueError(f"exits {list(exits)} must ascend")
    return exits


Exits = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_ascending)]
Thresholds = tuple[Annotated[float, Field(ge=0, le=1)], ...]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replicas(Section):
    """resources: custom Ray resources that each replica takes."""

    num_replicas: Count = 1
    resources: dict[str, float] = {}


class Placement(Replicas):
    """What one replica gets. cores: the CPUs that it is bound to, where there is one replica only."""

    threads: Count = 1
    cores: tuple[int, ...] | None = None
    num_gpus: Annotated[float, Field(ge=0)] = 0

    @field_validator("num_gpus")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            raise ValueError(f"a replica runs on one GPU, and {value:g} would take more; set 1, and raise num_replicas")
        return value

    @model_validator(mode="after")
    def _cores_of_one_replica(self) -> Self:
        if self.cores is not None and self.num_replicas > 1:
            raise ValueError(
                f"cores {list(self.cores)} would bind all of num_replicas {self.num_replicas} to the same CPUs, and "
                "ranks of replicas change when one is replaced; leave cores out"
            )
        return self


class Weights(Section):
    """A checkpoint, the memory for its KV, and who runs it: native kernels, plain torch (eager), or what can be had."""

    path: str
    dtype: Literal["fp32", "bf16"] = "bf16"
    execution: Literal["auto", "native", "eager"] = "auto"
    page_size: Count = 256
    kv_mb: Count = 512


class Listener(Section):
    """host: where replicas listen for each other, "node" for the address of their node; ports: 0 or a range."""

    host: str = "127.0.0.1"
    ports: tuple[Port, Port] = (0, 0)

    @field_validator("ports")
    @classmethod
    def _ascending(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1] or (value[0] == 0) != (value[1] == 0):
            raise ValueError(f"{list(value)} is no range of ports; give [first, last], or [0, 0] for any free one")
        return value


class Mirror(Section):
    """Drafting ahead: while a window is verified, the pool drafts the windows behind its likely outcomes.

    modes: how a round may get its proposals. fan_out: branches of a sequence at most. exit_layer: with
    ahead_early_exit, after how many of its layers the target says what it would pick so far (null: half of them).
    """

    fan_out: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] = 8
    exit_layer: Annotated[int, Field(ge=0)] | None = None
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = (Mode.SERIAL, Mode.AHEAD)

    @field_validator("modes")
    @classmethod
    def _once_each(cls, value: tuple[Mode, ...]) -> tuple[Mode, ...]:
        if twice := next((mode for mode in value if value.count(mode) > 1), None):
            raise ValueError(f"{twice} is named twice; name each mode once")
        return value


class Drafted(Section):
    """What speculation takes whatever its policy. mirror null or off: draft and verify in turn.

    request_length: the longest draft that a request may ask for itself; null: the policy's own longest.
    """

    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    request_length: Length | None = None
    mirror: Mirror | None = None

    @field_validator("mirror", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        if value in (False, "off"):
            return None
        return {} if value is True or value == "on" else value


class Ladder(Drafted):
    """depth: an exit of the drafter, or "cascade" through `exits` with one threshold before each next one."""

    depth: int | Literal["cascade"]
    exits: Exits = (2, 4, 6)
    thresholds: Thresholds | None = None  # null: 0.5 each

    @field_validator("depth", mode="before")
    @classmethod
    def _known_depth(cls, value: object) -> object:
        if value == "cascade" or (isinstance(value, int) and value >= 1):
            return value
        raise ValueError(f"{value!r} is no depth; give an exit of the drafter, counted in layers, or cascade")

    @model_validator(mode="after")
    def _one_threshold_between_exits(self) -> Self:
        if self.depth == "cascade":
            check_thresholds(self.exits, self.thresholds)
        return self


class FixedSpeculation(Ladder):
    """One depth and one length."""

    policy: Literal["fixed"]
    length: Length = 4


class TableSpeculation(Ladder):
    """One depth; table: batch size to length, the last entry that is no larger than the batch counting."""

    policy: Literal["table"]
    table: Annotated[dict[Count, Annotated[int, Field(ge=0, le=MAX_LENGTH)]], Field(min_length=1)]

    @field_validator("table")
    @classmethod
    def _batches_ascend(cls, value: dict[int, int]) -> dict[int, int]:
        if list(value) != sorted(value):
            raise ValueError(f"batch sizes {list(value)} must ascend")
        return value


class AdaptiveSpeculation(Drafted):
    """Exit and length as measured costs and learned acceptance have it, off included.

    exits: the depths to choose from (null: all of the drafter). length: of the longest draft.
    """

    exits: Exits | None = None
    length: Length = 12


class GoodputSpeculation(AdaptiveSpeculation):
    """What is believed of acceptance and costs, explored where it may pay."""

    policy: Literal["goodput"] = "goodput"


class EmaSpeculation(AdaptiveSpeculation):
    """A moving average of acceptance, at the profile's costs."""

    policy: Literal["ema"]


def check_thresholds(exits: tuple[int, ...], thresholds: tuple[float, ...] | None) -> None:
    """Raises ValueError unless there is one threshold before each next exit."""
    if thresholds is not None and len(thresholds) != len(exits) - 1:
        raise ValueError(f"{len(exits)} exits take {len(exits) - 1} thresholds, {len(thresholds)} were given")


def _policy_of(section: object) -> str | None:
    if isinstance(section, Mapping):
        return str(section.get("policy", "goodput"))
    return getattr(section, "policy", None)


Speculation = Annotated[
    Annotated[GoodputSpeculation, Tag("goodput")]
    | Annotated[EmaSpeculation, Tag("ema")]
    | Annotated[FixedSpeculation, Tag("fixed")]
    | Annotated[TableSpeculation, Tag("table")],
    Discriminator(_policy_of),
]


class TargetConfig(Placement, Weights):
    """One target. speculation null or off, or of policy off: plain decoding.

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
        named = value.get("policy") if isinstance(value, Mapping) and len(value) == 1 else value
        return None if named in (False, "off") else value


class PoolConfig(Listener, Placement, Weights):
    """The draft pool. Targets stream to its replicas.

    page_size: positions; a branch takes a page of its own for a few tokens. rows_per_target: sequences that one target
    replica may have there, at most; null: as many as there are rows.
    """

    page_size: Count = 16
    max_rows: Count = 64
    rows_per_target: Count | None = None
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
