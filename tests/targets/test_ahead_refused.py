"""Drafting ahead where the pool refuses a sequence, forgets it, or can never answer in time for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import AheadRequest, Branch
from protocol.draft import DraftReply, DraftRequest
from protocol.plan import BatchView, Mode, Plan
from protocol.record import RowRecord
from protocol.request import GenerateRequest
from router.policy import Fixed, StaticPolicy
from targets.engine import Engine
from tests.reference.engine import plain_texts, run_all
from tests.targets.ahead import DEEP, EXITS, engine_of, has_given_back, one_request
from tests.targets.conftest import LoadTarget

LENGTH = 4
NUM_TOKENS = 141


class Counting(LocalDraftClient):
    """Counts the whole contexts that are handed over, by sequence, and the times that branches are waited for.

    deaf: sequences for which nothing is drafted ahead.
    """

    def __init__(self, worker: DraftWorker, deaf: Sequence[int] = ()) -> None:
        super().__init__(worker, "engine")
        self.contexts, self.num_waits, self.deaf = Counter[int](), 0, deaf

    def open(self, request: DraftRequest) -> None:
        self.contexts.update(row.sequence_id for row in request.rows if not row.start)
        super().open(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self.contexts.update(row.sequence_id for row in request.rows if not row.start)
        return super().draft(request)

    def ahead(self, request: AheadRequest) -> None:
        self.contexts.update(row.context.sequence_id for row in request.rows if not row.context.start)
        rows = tuple(row for row in request.rows if row.context.sequence_id not in self.deaf)
        super().ahead(replace(request, rows=rows))

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        self.num_waits += timeout_s > 0
        return super().branches(timeout_s)


class Watching(StaticPolicy):
    """Always ahead at full depth, which is always right. drafts: by round, of each row whether it may be drafted for.
    forgets: the round in which the pool loses its first sequence.
    """

    def __init__(self, worker: DraftWorker | None = None, forgets: int = 0) -> None:
        self._worker, self._forgets = worker, forgets
        self.drafts = list[list[bool]]()

    def opening(self) -> int | None:
        return DEEP

    def plan(self, view: BatchView) -> Plan:
        self.drafts.append([row.drafts for row in view.sequences])
        if self._worker and len(self.drafts) == self._forgets:
            self._worker.close("engine", [0])
        return Fixed(DEEP, LENGTH, Mode.AHEAD).plan(view)


def pool(drafter: Decoder, num_pages: int = 256, **limits: Any) -> DraftWorker:
    return DraftWorker(NestedDrafter(drafter, EXITS, num_pages, 8), PoolLimits(max_rows=16, **limits))


def requests(count: int = 4) -> list[GenerateRequest]:
    return [one_request(seed, 7 + seed, NUM_TOKENS) for seed in range(count)]


def played(load: LoadTarget, client: Counting, policy: Watching) -> Engine:
    engine = engine_of(load, client, policy, max_batch=4)
    assert run_all(engine, requests()).tokens == plain_texts(load(), requests())
    assert has_given_back(engine)
    return engine


def rows_of_all(engine: Engine) -> list[RowRecord]:
    return [row for record in engine.last_rounds() for row in record.rows]


def rows_of(engine: Engine, sequence_id: int) -> list[RowRecord]:
    return [row for row in rows_of_all(engine) if row.sequence_id == sequence_id]


@pytest.mark.parametrize("room", [1, 3])
def test_a_sequence_that_the_pool_has_no_room_for_rests_and_is_hardly_ever_handed_over(
    load: LoadTarget, drafter: Decoder, room: int
) -> None:
    worker = pool(drafter, rows_of_one=room)
    client, policy = Counting(worker), Watching()
    played(load, client, policy)
    resting = [drafts.count(False) for drafts in policy.drafts if len(drafts) == 4]
    assert len(resting) > 20
    assert resting.count(4 - room) > 0.5 * len(resting)
    assert max(client.contexts.values()) <= 9, "ever less often: of so many tokens every second round would be 70"
    assert client.num_waits <= 8


def test_a_sequence_that_outgrows_the_drafters_window_rests_for_good_and_nothing_is_waited_for(
    load: LoadTarget, drafter: Decoder
) -> None:
    narrow = NestedDrafter(drafter, EXITS, 256, 8)
    narrow.max_positions = 64
    client, policy = Counting(DraftWorker(narrow, PoolLimits(max_rows=16))), Watching()
    played(load, client, policy)
    resting = [not any(drafts) for drafts in policy.drafts]
    assert resting.index(True) < 30
    assert all(resting[resting.index(True) :])
    assert set(client.contexts.values()) == {1}
    assert client.num_waits <= 2


def test_a_sequence_that_the_pool_forgot_is_drafted_for_again_though_the_others_have_theirs(
    load: LoadTarget, drafter: Decoder
) -> None:
    worker = pool(drafter)
    client = Counting(worker)
    engine = played(load, client, Watching(worker, forgets=8))
    without = [row for row in rows_of(engine, 0) if not row.num_drafted]
    assert 1 <= len(without) <= 4
    assert client.contexts[0] == 2
    assert client.num_waits <= 2


def test_a_sequence_for_which_nothing_comes_is_asked_for_and_does_not_hold_up_the_others(
    load: LoadTarget, drafter: Decoder
) -> None:
    client = Counting(pool(drafter), deaf=[0])
    engine = played(load, client, Watching())
    own = rows_of(engine, 0)
    assert sum(row.num_drafted > 0 for row in own) > 0.8 * len(own)
    assert client.num_waits < 0.3 * len(own)


def test_a_branch_that_pages_cut_does_not_count_as_one_that_stopped_in_doubt(
    load: LoadTarget, drafter: Decoder
) -> None:
    engine = played(load, Counting(pool(drafter, num_pages=40)), Watching())
    at_hand = [row for row in rows_of_all(engine) if row.at_hand]
    assert any(row.length < LENGTH for row in at_hand)
    assert all(row.num_drafted == row.length for row in at_hand)
