"""Engines whose steps take their time, or wait until a test lets them go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from targets.engine import Engine


def slow(make: Callable[[], Engine], step_s: float) -> Callable[[], Engine]:
    """Engines whose steps take so long."""
    return lambda: before_steps(make(), lambda: time.sleep(step_s))


class Held:
    """Makes engines which together take so many steps; the next one goes on when it is let go."""

    def __init__(self, make: Callable[[], Engine], num_steps: int) -> None:
        self._make, self._left = make, num_steps
        self._waits, self._may_go = threading.Event(), threading.Event()

    def engine(self) -> Engine:
        return before_steps(self._make(), self._wait)

    async def begun(self) -> None:
        """Returns once there is a step that waits."""
        assert await asyncio.to_thread(self._waits.wait, 30)

    async def let_go(self, when: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not when():
                await asyncio.sleep(0.01)
        self._may_go.set()

    def _wait(self) -> None:
        self._left -= 1
        if self._left < 0:
            self._waits.set()
            assert self._may_go.wait(30)


def before_steps(engine: Engine, act: Callable[[], None]) -> Engine:
    step = engine._stepper.step

    def later() -> Any:
        act()
        return step()

    engine._stepper.step = later  # type: ignore[method-assign]
    return engine
