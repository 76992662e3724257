"""How often drafts are accepted, as an operator writes it for a simulation: a JSON file, or one rate for each exit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from cli.arguments import ALL
from deployments.config_section import Count, Section
from protocol.errors import ConfigError
from simulation.text import Drawn, Rates, drawn, stage

Probability = Annotated[float, Field(ge=0, le=1)]
Stages = Annotated[tuple["StageConfig", ...], Field(min_length=1)]


class StageConfig(Section):
    """rates: by exit, the probability that a token is accepted if all before it were.

    concentration: how much a confidence tells (small: much); null: it is the rate itself. from_position, from_ms: when
    the stage begins, in tokens of a text, its prompt counted, and in time of the simulation.
    """

    rates: Annotated[dict[Count, Probability], Field(min_length=1)]
    concentration: Annotated[float, Field(gt=0)] | None = None
    from_position: Annotated[int, Field(ge=0)] = 0
    from_ms: Annotated[float, Field(ge=0)] = 0.0

    def stage(self) -> Rates:
        concentration = math.inf if self.concentration is None else self.concentration
        return stage(self.rates, concentration, self.from_position, self.from_ms)


class AcceptanceFile(Section):
    """targets: by name, "*" for those that are not named."""

    schema_version: Literal[2]
    targets: dict[str, Stages]


def read_acceptance(path: Path) -> Mapping[str, Drawn]:
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
    return {name: _drawn(name, stages) for name, stages in file.targets.items()}


def one_rate(rates: Mapping[int, float]) -> Mapping[str, Drawn]:
    """The same everywhere, for every target."""
    return {ALL: drawn(rates)}


def acceptance_of(known: Mapping[str, Drawn], target: str, exits: Sequence[int]) -> Drawn:
    """exits: the drafter's. Raises ConfigError unless the target is there, with all exits."""
    found = known.get(target, known.get(ALL))
    if found is None:
        raise ConfigError(f"the acceptance file does not tell of target {target}; add it, or one for {ALL!r}")
    if found.exits != tuple(exits):
        wanted, given = (", ".join(map(str, each)) for each in (exits, found.exits))
        raise ConfigError(f"acceptance of target {target} is given for exits {given}; the drafter has {wanted}")
    return found


def _drawn(name: str, stages: Stages) -> Drawn:
    """Raises ConfigError unless the first stage counts from the start, and all name the same exits."""
    exits = {tuple(sorted(one.rates)) for one in stages}
    if len(exits) > 1:
        raise ConfigError(f"the stages of target {name} must name the same exits")
    if stages[0].from_position or stages[0].from_ms:
        raise ConfigError(f"the first stage of target {name} must begin at position 0 and 0 ms")
    return Drawn(exits.pop(), tuple(one.stage() for one in stages))
