"""What drafting costs: whole rounds of a real worker, on synthetic rows.

Every row has a context of its own, which is settled once, to the deepest exit. Each round sends new tokens behind that
context, which differ from those of the round before from the first on. So the pool drops its own drafts, shares no page
of them, and each round finds the same state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.sweep import MIB, sweeper
from protocol.draft import DraftRequest, DraftRow
from protocol.errors import ConfigError
from protocol.request import GREEDY

INCARNATION = "profile"
NUM_NEW = (1, 4, 16)
LENGTHS = (1, 5)
TARGET_BYTES = 64 * MIB  # read between two rounds
CONTEXT = 256  # or what the memory holds


@dataclass(frozen=True, slots=True)
class DraftRound:
    """num_new: committed tokens that each row feeds before it drafts `length` more, at one exit."""

    num_rows: int
    depth: int
    num_new: int
    length: int


def largest_batch(drafter: NestedDrafter, max_rows: int) -> int:
    """For how many rows of the longest round there are free pages; at most max_rows."""
    pages = -(-(1 + NUM_NEW[-1] + LENGTHS[-1]) // drafter.ledger.page_size)
    return min(max_rows, drafter.ledger.num_free // pages)


def draft_context(drafter: NestedDrafter, num_rows: int) -> int:
    """How many positions of context each of so many rows can have. Raises ConfigError if the largest round has none."""
    ledger = drafter.ledger
    room = min(drafter.max_positions, ledger.num_free // num_rows * ledger.page_size)
    context = min(CONTEXT, room - NUM_NEW[-1] - LENGTHS[-1])
    if context < 1:
        raise ConfigError(f"the KV memory of the pool does not hold {num_rows} rows to profile with; raise its kv_mb")
    return context


@contextmanager
def draft_timer(
    drafter: NestedDrafter, num_rows: int, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Callable[[DraftRound], float]]:
    """Yields what times a round of at most so many rows, in milliseconds. It leaves nothing in the drafter."""
    context = draft_context(drafter, num_rows)
    worker = DraftWorker(drafter, PoolLimits(max_rows=num_rows), clock)
    client = LocalDraftClient(worker, INCARNATION, clock=clock)
    turns = [0] * num_rows
    sweep = sweeper(TARGET_BYTES, drafter.device)

    def row(number: int, one: DraftRound) -> DraftRow:
        turns[number] += 1
        tokens = (turns[number] % 2 + 1, *[0] * (one.num_new - 1))
        return DraftRow(number, context, tokens, one.length, GREEDY)

    def measure(one: DraftRound) -> float:
        rows = tuple(row(number, one) for number in range(one.num_rows))
        request = DraftRequest(INCARNATION, 0, one.depth, rows)
        drafter.ledger.forget()
        sweep()
        began = clock()
        reply = client.draft(request)
        elapsed = clock() - began
        assert reply is not None
        assert all(len(block.tokens) == one.length for block in reply.blocks), "a row was not drafted for"
        return 1e3 * elapsed

    contexts = ((number % drafter.vocab_size,) * (context + 1) for number in range(num_rows))
    known = tuple(DraftRow(number, 0, tokens, 0, GREEDY) for number, tokens in enumerate(contexts))
    try:
        client.open(DraftRequest(INCARNATION, 0, drafter.exits[-1], known))
        while worker.step() is not None:
            pass
        yield measure
    finally:
        worker.drop(INCARNATION)
