"""The draft clients that keep to one contract, and what its tests ask of them.

A transport joins by adding its `Connect` to CLIENTS: given a worker, an incarnation, a deadline in seconds and a clock
if not the real one, it gives a client while its context lasts. The worker is then the transport's to step. The tests
are in test_client_contract.py and, of drafting ahead, in test_ahead_contract.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from drafters.client import LocalDraftClient
from drafters.worker import DraftWorker
from protocol.branch import AheadClient
from protocol.draft import DraftBlock, DraftClient, DraftRequest, DraftRow
from protocol.request import SamplingParams
from tests.link.contract import linked

Connect = Callable[..., AbstractContextManager[AheadClient]]

PATIENCE_S = 30.0
TOKENS = [3, 14, 15, 92, 65, 35, 89, 79]
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=2**63 + 11)
DEPTH = 2


@contextmanager
def local(
    worker: DraftWorker, incarnation: str, deadline_s: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[AheadClient]:
    yield LocalDraftClient(worker, incarnation, deadline_s, clock)


CLIENTS: tuple[Connect, ...] = (local, linked)


def row(sequence_id: int, tokens: list[int], length: int, start: int = 0) -> DraftRow:
    return DraftRow(sequence_id, start, tuple(tokens[start:]), length, SAMPLED)


def request(*rows: DraftRow, round_id: int = 1) -> DraftRequest:
    return DraftRequest("target", round_id, DEPTH, rows)


def draft(client: DraftClient, *rows: DraftRow, round_id: int = 1) -> tuple[DraftBlock, ...]:
    reply = client.draft(request(*rows, round_id=round_id))
    assert reply is not None
    assert (reply.incarnation, reply.round_id) == ("target", round_id)
    assert reply.wait_ms >= 0
    return reply.blocks


def eventually(condition: Callable[[], bool]) -> None:
    """Closing and opening do not wait, so neither is done when it returns."""
    until = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()
