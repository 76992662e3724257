"""Config sections about a replica: its devices, its checkpoint, and the address on which it listens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from deployments.config_section import Count, Port, Seconds, Section


class Replicas(Section):
    """Replicas of a deployment. resources: custom Ray resources per replica."""

    num_replicas: Count = 1
    resources: dict[str, float] = Field(default={})

    @property
    def most_replicas(self) -> int:
        """Of those that may be there at once."""
        return self.num_replicas


class Autoscaling(Section):
    """As many replicas as there is work for. A replica's load is what it has to do over what it does at once: the
    requests of a target over max_batch, and the time that a draft replica spends in passes. busy: load of each beyond
    which another one comes. calm: load of each at most when one has gone. up_after_s, down_after_s: how long it must
    last.
    """

    min_replicas: Count = 1
    max_replicas: Count
    busy: Annotated[float, Field(gt=0, le=100)] = 0.8
    calm: Annotated[float, Field(gt=0, le=100)] = 0.4
    up_after_s: Seconds = 10.0
    down_after_s: Seconds = 120.0

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}; lower it")
        if self.calm >= self.busy:
            raise ValueError(f"calm {self.calm:g} is not below busy {self.busy:g}; lower it, or replicas come and go")
        return self


class Placement(Replicas):
    """The resources of one replica. cores: CPUs to pin it to; only allowed with one replica. num_gpus: 0 to 1.

    autoscaling: in place of num_replicas.
    """

    threads: Count = 1
    cores: tuple[int, ...] | None = None
    num_gpus: Annotated[float, Field(ge=0)] = 0
    autoscaling: Autoscaling | None = None

    @property
    def most_replicas(self) -> int:
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas

    @property
    def first_replicas(self) -> int:
        """How many there are at the start."""
        return self.autoscaling.min_replicas if self.autoscaling else self.num_replicas

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.autoscaling and self.num_replicas > 1:
            raise ValueError(f"num_replicas {self.num_replicas} and autoscaling both say how many; leave one out")
        return self

    @field_validator("num_gpus")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            raise ValueError(f"a replica runs on one GPU, and {value:g} is more; set 1, and raise num_replicas")
        return value

    @model_validator(mode="after")
    def _cores_of_one_replica(self) -> Self:
        if self.cores is not None and self.most_replicas > 1:
            raise ValueError(
                f"cores {list(self.cores)} would pin all {self.most_replicas} replicas to the same CPUs; leave it out"
            )
        return self


class Weights(Section):
    """A checkpoint, how it runs, and the memory of its KV cache.

    path: a directory, a GGUF file, either in an installed Python package (package:NAME==VERSION/FILE), or a hub id.
    weights: matrices as the checkpoint stores them, so that GGUF's blocks stay packed; dense, in dtype; or int8 by
    output channel. execution: native kernels, plain torch (eager), or native if possible (auto). page_size: positions
    per KV page; prompts that begin alike share full pages. kv_mb: MiB.
    """

    path: str
    dtype: Literal["fp32", "bf16"] = "bf16"
    weights: Literal["stored", "dense", "int8"] = "stored"
    execution: Literal["auto", "native", "eager"] = "auto"
    page_size: Count = 32
    kv_mb: Count = 512


class Listener(Section):
    """Where replicas listen for each other. host: an address, or "node" for the node's. ports: [first, last]."""

    host: str = "127.0.0.1"
    ports: tuple[Port, Port] = (0, 0)

    @field_validator("ports")
    @classmethod
    def _ascending(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1] or (value[0] == 0) != (value[1] == 0):
            raise ValueError(f"{list(value)} is not a range of ports; set [first, last], or [0, 0] for any free one")
        return value
