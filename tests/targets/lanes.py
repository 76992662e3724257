"""What tests ask of lanes: modes that change for no reason, and texts of which some are cancelled."""

from __future__ import annotations

import random

from protocol.request import FinishReason
from router.mode_choice import Modes
from router.modes import Mode, Round
from targets.engine import Engine
from targets.mirror import MirrorConfig, MirrorStepper
from tests.reference.engine import Collector

LANES = MirrorConfig(modes=(Mode.LANES,))


class Tossed(Modes):
    """Another mode every few rounds, for no reason."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng, self.mode = random.Random(seed), Mode.LANES
        self.told: list[Round] = []

    def choose(self, num_rows: int) -> Mode:
        if self.rng.random() < 0.3:
            self.mode = self.rng.choice(list(Mode))
        return self.mode if num_rows > 1 else Mode.SERIAL

    def observe(self, num_rows: int, played: Round) -> None:
        self.told.append(played)


def toss(engine: Engine, seed: int) -> Tossed:
    assert isinstance(engine._stepper, MirrorStepper)
    engine._stepper._modes = tossed = Tossed(seed)
    return tossed


def agree(collector: Collector, texts: dict[str, list[int]]) -> bool:
    """Whole texts, and of cancelled requests the beginning."""
    return all(
        tokens == (texts[name][: len(tokens)] if collector.reasons[name] is FinishReason.ABORT else texts[name])
        for name, tokens in collector.tokens.items()
    )
