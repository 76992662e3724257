"""What the share of a step for the shortest prompts brings: the real engine's steps in virtual time.

python -m tests.simulation.short_prompts     # the tables of docs/decisions/0016-short-prompts.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from router.policy import Off
from simulation.simulate import TargetSpec, simulate
from simulation.target import Arrival, Served
from simulation.text import drawn
from targets.scheduler import SchedulerConfig
from tests.simulation.curves import linear_curves

SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)
LONG, SHORT = 500, 40  # tokens of a prompt
NUM_LONG, MAX_TOKENS = 15, 16
# SmolLM2 in its blocks on two cores, roughly: 7,500 tokens of prompts in 11.5 s, and 15 ms for a step that decodes.
COSTS = linear_curves((15.0, 1.0, 0.0), (1.0, 0.1, 0.0), (2,), prefill=(5.0, 1.5))
ONE = [Arrival(0.0, SHORT, MAX_TOKENS)]


def stream(number: int, pause_s: float) -> list[Arrival]:
    """Short prompts that go on coming while the long ones are read."""
    return [Arrival(pause_s * place, SHORT, MAX_TOKENS) for place in range(number)]


def served(share: float, shorts: Sequence[Arrival], chunk: int = 512) -> tuple[list[Served], list[Served]]:
    """The long and the short requests of a target whose batch holds all of them."""
    arrivals = [*[Arrival(0.0, LONG, MAX_TOKENS)] * NUM_LONG, *shorts]
    config = SchedulerConfig(max_batch=len(arrivals), prefill_chunk=chunk, short_share=share)
    (target,) = simulate([TargetSpec("one", COSTS, Off, drawn({2: 0.5}), arrivals, config)]).targets
    return target.served[:NUM_LONG], target.served[NUM_LONG:]


def first_s(request: Served) -> float:
    """From its arrival to its first token."""
    assert request.first_s is not None
    return request.first_s - request.arrival.at_s


def row(share: float, shorts: Sequence[Arrival], chunk: int = 512) -> str:
    long, short = served(share, shorts, chunk)
    waits, held = list(map(first_s, short)), list(map(first_s, long))
    cells = fmean(waits), max(waits), min(held), fmean(held), max(held), max(one.ended_s or 0.0 for one in long)
    return f"| {share:g} | {' | '.join(f'{cell:.2f}' for cell in cells)} |"


def tables() -> Iterator[str]:
    """Seconds until the first token: of short prompts on average and at most, of the first long one, on average, of the
    last; and until the end of the last long text.
    """
    for shorts, chunk in ((ONE, 512), (ONE, 128), (stream(20, 0.5), 512), (stream(100, 0.1), 512)):
        yield f"\n{len(shorts)} short, the last after {shorts[-1].at_s:g} s, steps of {chunk}:\n"
        yield "| share | short | latest short | first long | long | last long | long texts ended |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        yield from (row(share, shorts, chunk) for share in SHARES)


if __name__ == "__main__":
    print("\n".join(tables()))  # noqa: T201
