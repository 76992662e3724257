"""Config sections about a replica: its devices, its checkpoint, and the address on which it listens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from deployments.config_section import Count, Port, Section


class Replicas(Section):
    """Replicas of a deployment. resources: custom Ray resources per replica."""

    num_replicas: Count = 1
    resources: dict[str, float] = Field(default={})


class Placement(Replicas):
    """The resources of one replica. cores: CPUs to pin it to; only allowed with one replica. num_gpus: 0 to 1."""

    threads: Count = 1
    cores: tuple[int, ...] | None = None
    num_gpus: Annotated[float, Field(ge=0)] = 0

    @field_validator("num_gpus")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            raise ValueError(f"a replica runs on one GPU, and {value:g} is more; set 1, and raise num_replicas")
        return value

    @model_validator(mode="after")
    def _cores_of_one_replica(self) -> Self:
        if self.cores is not None and self.num_replicas > 1:
            raise ValueError(
                f"cores {list(self.cores)} would pin all replicas of num_replicas {self.num_replicas} to the same "
                "CPUs; leave cores out"
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
