"""How often drafts are accepted, as an operator writes it for a simulation: a JSON file, or one rate for each exit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from deployments.config_section import Count, Section
from protocol.errors import ConfigError
from router.simulate_acceptance import Profile, Stage, acceptance_table, always

Probability = Annotated[float, Field(ge=0, le=1)]
Stages = Annotated[tuple["StageConfig", ...], Field(min_length=1)]
ALL = "*"


class StageConfig(Section):
    """hazards: by exit, the probability that a token is accepted if all before it were, by position; the last goes on.

    concentration: how much a confidence tells (small: much); null: it is the hazard itself. from_token, from_ms: when
    the stage begins, in tokens of a text and in time of the simulation.
    """

    hazards: Annotated[dict[Count, Annotated[tuple[Probability, ...], Field(min_length=1)]], Field(min_length=1)]
    concentration: Annotated[float, Field(gt=0)] | None = None
    from_token: Annotated[int, Field(ge=0)] = 0
    from_ms: Annotated[float, Field(ge=0)] = 0.0

    def stage(self) -> Stage:
        table = acceptance_table(self.hazards, math.inf if self.concentration is None else self.concentration)
        return Stage(table, self.from_token, self.from_ms)


class AcceptanceFile(Section):
    """targets: by name, "*" for those that are not named."""

    schema_version: Literal[1]
    targets: dict[str, Stages]


def read_acceptance(path: Path) -> Mapping[str, Profile]:
    """By target, as `AcceptanceFile`. Raises ConfigError naming the file and the key."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        file = AcceptanceFile.model_validate(values)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}, got {first['input']!r}; see docs/simulate.md") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    return {name: Profile(tuple(one.stage() for one in stages)) for name, stages in file.targets.items()}


def one_rate(rates: Mapping[int, float]) -> Mapping[str, Profile]:
    """The same at every position, for every target."""
    return {ALL: always(acceptance_table({exit_: (rate,) for exit_, rate in rates.items()}))}


def profile_of(profiles: Mapping[str, Profile], target: str, exits: Sequence[int]) -> Profile:
    """exits: the drafter's. Raises ConfigError unless it tells of the target, and of all exits."""
    profile = profiles.get(target, profiles.get(ALL))
    if profile is None:
        raise ConfigError(f"the acceptance file does not tell of target {target}; add it, or one for {ALL!r}")
    if profile.exits != tuple(exits):
        wanted, given = (", ".join(map(str, each)) for each in (exits, profile.exits))
        raise ConfigError(f"acceptance of target {target} is given for exits {given}; the drafter has {wanted}")
    return profile
