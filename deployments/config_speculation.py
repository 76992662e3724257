"""The speculation section of a target's config: the policy, and whether drafts come ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from deployments.config_section import Count, Section
from protocol.limits import MAX_LENGTH

Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]


def _ascending(exits: tuple[int, ...]) -> tuple[int, ...]:
    if list(exits) != sorted(set(exits)):
        raise ValueError(f"exits {list(exits)} must ascend")
    return exits


Exits = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_ascending)]
Thresholds = tuple[Annotated[float, Field(ge=0, le=1)], ...]


class Drafted(Section):
    """What speculation takes whatever its policy.

    request_length: the longest draft that a request may ask for itself; null: the policy's own longest. ahead: whether
    the pool drafts while the target verifies; null: as `drafts_ahead` in deployments/policies.py has it.
    """

    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    request_length: Length | None = None
    ahead: bool | None = None


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

    @field_validator("ahead")
    @classmethod
    def _in_turn(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("policy: ema drafts in turn only; leave ahead out, or take policy: goodput")
        return value


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
