"""Devices that are slower than this one: a step does its work and then sleeps up to the time that it is given.

What comes out is what the real step computes; asleep, it leaves the core to others. So hardware with other costs can be
measured where cores are few. A step that takes longer than its time is not shortened: `num_late` counts those, and a
result with many of them is none. For measurements only: results carry the label, and nothing that is served imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from drafters.nested import NestedDrafter
from drafters.picks import PassRow, Pick
from protocol.request import SamplingParams
from targets.model import ForwardRow, TargetModel
from targets.scoring import Picks


@dataclass(slots=True)
class SlowDevice:
    """name: what it stands for, as "30 ms a pass"."""

    name: str
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    num_steps: int = field(default=0, init=False)
    num_late: int = field(default=0, init=False)

    @property
    def late(self) -> float:
        """Share of the steps."""
        return self.num_late / max(self.num_steps, 1)

    def finish(self, began: float, milliseconds: float) -> None:
        """A step that began at that reading of the clock ends no earlier than so much later."""
        until = began + milliseconds / 1e3
        self.num_steps += 1
        self.num_late += self.clock() > until
        while (left := until - self.clock()) > 0:
            self.sleep(left)


@dataclass(frozen=True, slots=True)
class SlowedTarget(TargetModel):
    """step_ms: of a step over these rows."""

    device: SlowDevice
    step_ms: Callable[[Sequence[ForwardRow]], float]

    def scored_picks(
        self, rows: Sequence[ForwardRow], sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> Picks:
        began = self.device.clock()
        picks = TargetModel.scored_picks(self, rows, sampling, positions)
        self.device.finish(began, self.step_ms(rows))
        return picks


def slowed_target(
    model: TargetModel, device: SlowDevice, step_ms: Callable[[Sequence[ForwardRow]], float]
) -> SlowedTarget:
    """The same target, its pages and KV included."""
    own = {each.name: getattr(model, each.name) for each in fields(model)}
    return SlowedTarget(**own, device=device, step_ms=step_ms)


class SlowedDrafter(NestedDrafter):
    """A nested drafter whose steps take their time; it shares pages, KV and watermarks with the one it slows."""

    def __init__(
        self, drafter: NestedDrafter, device: SlowDevice, step_ms: Callable[[Sequence[PassRow]], float]
    ) -> None:
        """step_ms: of one token for each of these rows, however many the drafter makes in a pass."""
        vars(self).update(vars(drafter))
        self.slow = device
        self.step_ms = step_ms

    def run(self, rows: Sequence[PassRow]) -> list[list[Pick]]:
        began = self.slow.clock()
        picks = super().run(rows)
        self.slow.finish(began, self.step_ms(rows) * max([1, *map(len, picks)]))
        return picks
