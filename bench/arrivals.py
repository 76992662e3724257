"""What a load run sends and when, decided before the first request leaves.

A schedule is a value: the same seed gives the same one, whatever the server does with it. Gaps and models are drawn
from streams of their own, so a higher rate sends the same requests in the same order, only closer together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. due_s: after the run's start, or None for as soon as a place is free; prompt: its number."""

    model: str
    prompt: int
    due_s: float | None = None


def poisson(
    weights: Mapping[str, float], num_prompts: int, *, rate: float, duration_s: float, seed: int
) -> list[Arrival]:
    """Open loop: exponential gaps of mean 1 / rate seconds, until duration_s. Raises ConfigError when none arrives."""
    gaps, models = random.Random(f"gaps {seed}"), _models(weights, seed)
    schedule: list[Arrival] = []
    due_s = gaps.expovariate(1.0) / rate
    while due_s < duration_s:
        schedule.append(Arrival(next(models), len(schedule) % num_prompts, due_s))
        due_s += gaps.expovariate(1.0) / rate
    if not schedule:
        raise ConfigError(f"at --rate {rate:g} nothing arrives within --duration {duration_s:g}; raise one of them")
    return schedule


def closed_loop(weights: Mapping[str, float], num_prompts: int, *, num_requests: int, seed: int) -> list[Arrival]:
    """Each request follows when another one has ended; how many are under way is for the sender to bound."""
    models = _models(weights, seed)
    return [Arrival(next(models), number % num_prompts) for number in range(num_requests)]


def _models(weights: Mapping[str, float], seed: int) -> Iterator[str]:
    draw = random.Random(f"models {seed}")
    while True:
        yield draw.choices(list(weights), list(weights.values()))[0]


def parse_targets(text: str) -> dict[str, float]:
    """'large,small' or 'large:3,small:1', as weights. Raises ConfigError naming what it cannot read."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, weight = part.strip().rpartition(":")
        name, weight = (name, weight) if colon else (weight, "1")
        if not name or name in weights or not _is_positive(weight):
            raise ConfigError(f"--targets: {part!r} names no further target; write large,small or large:3,small:1")
        weights[name] = float(weight)
    return weights


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
