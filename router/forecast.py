"""What the router promised and what came: the figure that says whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was promised and what came, as running means: tokens per second of this target's rounds."""

    predicted: float = 0.0
    realised: float = 0.0
    num_rounds: int = 0


def follow(forecast: Forecast, predicted: float, realised: float) -> Forecast:
    share = max(0.02, 1 / (forecast.num_rounds + 1))
    return Forecast(
        forecast.predicted + share * (predicted - forecast.predicted),
        forecast.realised + share * (realised - forecast.realised),
        forecast.num_rounds + 1,
    )
