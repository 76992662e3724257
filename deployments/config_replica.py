"""Config sections about a replica: its devices, its checkpoint, and the address on which it listens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from deployments.config_section import Count, Port, Section


class Replicas(Section):
    """resources: custom Ray resources that each replica takes."""

    num_replicas: Count = 1
    resources: dict[str, float] = Field(default={})


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
