"""What surveyed texts say about drafts: by exit and position the hazard, and confidences that stand for it.

A stretch is cut into drafts as drafting would have cut it, each beginning behind the token that ended the last one. So
easy passages take part as often as such drafts would meet them: short drafts meet them more often than long ones, and a
table belongs to a length. Confidences are raised to the power that makes their mean the hazard.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
import numpy.typing as npt

from bench.cells import Cell
from bench.ours import DraftPoolEngine, requests
from bench.survey import Surveyor, Told
from bench.workload import Workload
from deployments.local import complete, open_engine
from router.simulate_acceptance import AcceptanceTable
from targets.engine import EngineConfig

Floats = npt.NDArray[np.float64]
Fates = list[list[tuple[bool, float]]]  # by position: whether the token is right, how sure the drafter was

ENOUGH = 24  # drafts that must have reached a position, or the one before it stands for it
NUM_QUANTILES = 64
LOWEST = 1e-6  # confidence


def surveyed(
    engine: DraftPoolEngine, workload: Workload, batch: int, max_tokens: int, temperature: float = 0.0
) -> list[list[Told]]:
    """Decodes the workload's prompts with every row probed in every round; stretches without a gap."""
    surveyor = Surveyor(engine.worker.describe().exits)
    for number, prompts in zip(count(), workload.groups(Cell("fixed", batch)), strict=False):
        config = EngineConfig(max_batch=batch, max_queue=batch, incarnation=f"survey-{id(surveyor)}-{number}")
        running = open_engine(engine.model, engine.worker, surveyor, config)
        try:
            complete(running, requests(prompts, temperature, max_tokens))
        finally:
            running.stop()
        surveyor.next_run()
    return surveyor.runs()


def fates(stretches: Sequence[Sequence[Told]], exit_number: int, length: int) -> Fates:
    """Of the tokens that drafts of so many tokens would have reached, the earlier ones being right."""
    found: Fates = [[] for _ in range(length)]
    for stretch in stretches:
        start = 0
        while start < len(stretch):
            run = 0
            for at, told in enumerate(stretch[start : start + length]):
                right, sure = told[exit_number]
                found[at].append((bool(right), sure))
                if not right:
                    break
                run += 1
            start += run + 1
    return found


def acceptance_of(stretches: Sequence[Sequence[Told]], exits: Sequence[int], length: int) -> AcceptanceTable:
    """Of drafts of so many tokens; positions that few of them reached are left out. Raises ConfigError for no text."""
    cells = []
    for number in range(len(exits)):
        known = [own for own in fates(stretches, number, length) if own]
        kept = [own for own in known if len(own) >= ENOUGH] or known[:1]
        cells.append(tuple(map(_confidences, kept)))
    return AcceptanceTable(tuple(exits), tuple(cells))


def hazards_of(table: AcceptanceTable, exit_: int, length: int) -> Floats:
    """[length]: that a token is accepted, given that all before it were."""
    return np.asarray([table.hazard(exit_, position) for position in range(length)])


def _confidences(told: Sequence[tuple[bool, float]]) -> tuple[float, ...]:
    """Quantiles, ascending, whose mean is the share that is right."""
    hazard = sum(right for right, _ in told) / len(told)
    if hazard in (0.0, 1.0):
        return (hazard,)
    middles = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    logs = np.log(np.quantile(np.maximum([sure for _, sure in told], LOWEST), middles))
    low, high = -12.0, 12.0  # of the power's logarithm; the mean falls with it
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.exp(np.exp(middle) * logs).mean() > hazard else (low, middle)
    values = np.exp(np.exp(low) * logs)
    return tuple(np.clip(values * (hazard / values.mean()), 0.0, 1.0).tolist())
