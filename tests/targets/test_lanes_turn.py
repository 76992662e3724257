"""How the lanes turn works: who is asked for while whom is verified, who waits, and what is told of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from drafters.client import LocalDraftClient
from drafters.worker import DraftWorker
from link.transport import LinkedDraftClient
from model.decoder import Decoder
from protocol.draft import DraftReply, DraftRequest
from protocol.plan import BatchView, Plan
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from router.modes import Mode
from router.policy import Fixed
from targets.engine import Engine
from targets.mirror import MirrorConfig
from targets.model import TargetModel
from targets.timeline import RoundRecord
from tests.drafters.clients import eventually
from tests.link.contract import linked
from tests.model.families import VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all
from tests.targets.conftest import LoadTarget
from tests.targets.lanes import LANES, agree, toss
from tests.targets.mirrored import DEEP, SHALLOW, Connect, engine_of


def records(engine: Engine, mode: Mode | None = Mode.LANES) -> list[RoundRecord]:
    """mode: None: of all."""
    assert engine.timeline is not None
    return [record for record in engine.timeline.last() if mode is None or record.mode is mode]


class Recorder(LocalDraftClient):
    """Keeps what was asked, None for every answer that was waited for."""

    def __init__(self, worker: DraftWorker) -> None:
        super().__init__(worker, "engine")
        self.said: list[DraftRequest | None] = []
        self.lost = False

    def ask(self, request: DraftRequest) -> None:
        self.said.append(request)
        super().ask(request)

    def answer(self) -> DraftReply | None:
        self.said.append(None)
        reply = super().answer()
        return None if self.lost else reply


def recorded(drafter: Decoder) -> tuple[Connect, Recorder]:
    """A draft replica, and the client to it that keeps what was asked."""
    connect = Connect(drafter)
    connect()
    return connect, Recorder(connect.worker)


class Looking(Fixed):
    """Keeps for how many it planned, and which overlap."""

    def plan(self, view: BatchView) -> Plan:
        self.__dict__.setdefault("seen", []).append((len(view.sequences), view.overlap))
        return super().plan(view)


def even_requests(count: int, max_tokens: int = 41) -> list[GenerateRequest]:
    """Begin and end together where every draft is accepted."""
    return [
        GenerateRequest(str(i), (5, 6, 7 + i), SamplingParams(temperature=1.0, seed=i), StopRules(max_tokens))
        for i in range(count)
    ]


def test_lanes_alternate_and_each_is_asked_for_once_while_the_other_is_verified(
    load: LoadTarget, drafter: Decoder
) -> None:
    _, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(DEEP, 4), LANES)
    run_all(engine, even_requests(5))
    asked = [message for message in client.said if message is not None]
    lanes = [{row.sequence_id for row in request.rows} for request in asked]
    whole, rounds = lanes[0], lanes[1:-2]  # the first draft is for the batch; in the end some are done
    assert len(whole) == 5
    assert {len(lane) for lane in rounds} == {2, 3}
    for lane, following in pairwise(rounds):
        assert lane | following == whole
        assert not lane & following
    for before, message in pairwise(client.said[2:]):
        assert (before is None) is not (message is None)
    stats = engine.stats().mirror
    assert stats is not None
    assert stats.num_lanes >= len(rounds) - 2
    in_turn = [record for record in records(engine, Mode.SERIAL) if record.lengths]
    assert len(records(engine)) == stats.num_rounds - len(in_turn) > stats.num_lanes


@pytest.mark.parametrize("seed", range(4))
def test_modes_are_told_what_rounds_took_and_brought(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    engine = engine_of(load, Connect(drafter)(), Fixed(SHALLOW, 3), LANES)
    told = toss(engine, seed).told
    run_all(engine, even_requests(4))
    whole = [record for record in records(engine, None) if sum(record.lengths) and not record.num_prefill_tokens]
    by_lengths = {(one.mode, one.lengths, one.ms): one for one in told}
    for record in whole:
        marks = record.marks
        one = by_lengths.get((record.mode, record.lengths, 1e3 * (record.ended - marks.began)))
        if one is None:  # the pool was catching up
            continue
        assert len(record.lengths) + sum(one.accepted) >= record.num_committed
        assert one.verify_ms + one.rest_ms + 1e3 * (marks.drafted - marks.planned) == pytest.approx(one.ms)
        assert one.num_hits == sum(source is not None for source in record.hits) <= one.num_planned
        assert (one.draft_ms is not None) is (record.waited and record.mode is not Mode.LANES)
    assert {one.mode for one in told} == set(Mode)
    assert any(one.num_hits for one in told)
    assert len(told) > len(whole) / 2


def test_half_of_the_batch_is_planned_at_a_time_and_every_draft_is_accepted_as_it_was_made(
    load: LoadTarget, drafter: Decoder
) -> None:
    connect, policy = Connect(drafter), Looking(DEEP, 4)
    engine = engine_of(load, connect(), policy, LANES)
    result = run_all(engine, even_requests(6))
    assert policy.seen[0] == (6, "")  # the first round is in turn
    assert policy.seen[1] == (3, "")  # the first lane too
    assert set(policy.seen[2:-2]) == {(3, "lanes")}
    assert {stats.histogram for stats in result.stats.values()} == {(0, 0, 0, 0, 8)}


def test_where_nothing_comes_the_whole_batch_is_verified_at_once(load: LoadTarget, drafter: Decoder) -> None:
    _, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(DEEP, 4), LANES)
    client.lost = True
    assert run_all(engine, even_requests(4)).tokens == plain_texts(load(), even_requests(4))
    assert records(engine) == []
    assert {len(record.lengths) for record in records(engine, Mode.SERIAL)} == {0, 4}


def test_when_the_pool_falls_silent_lanes_end_and_who_was_cancelled_in_mid_draft_is_forgotten(
    load: LoadTarget, drafter: Decoder
) -> None:
    connect, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(DEEP, 4), LANES)

    class Ending(Collector):
        """The oldest is in one lane, the youngest in the other, which is in flight when it is told of the oldest."""

        def __call__(self, run: TokenRun) -> None:
            super().__call__(run)
            if run.request_id == "3" and len(self.tokens["3"]) > 20 and not client.lost:
                client.lost = True
                engine.cancel("0")

    collector = Ending()
    for request in even_requests(4):
        engine.submit(request, collector)
    engine.start()
    collector.wait(4)
    engine.stop()
    assert collector.reasons["0"] is FinishReason.ABORT
    assert agree(collector, plain_texts(load(), even_requests(4)))
    assert engine.timeline is not None
    modes = [record.mode for record in engine.timeline.last()]
    last = len(modes) - modes[::-1].index(Mode.LANES)
    drafted = [sum(record.lengths) for record in engine.timeline.last()]
    assert drafted[last - 1 :] == [0] * (len(modes) - last + 1)
    assert drafted[last - 2] > 0
    assert modes[last:] == [Mode.SERIAL] * (len(modes) - last) != []
    assert not engine._drafting._asks  # type: ignore[union-attr]
    assert connect.is_empty()


def test_drafts_in_flight_are_dropped_where_the_mode_changes_and_not_waited_for(
    load: LoadTarget, drafter: Decoder
) -> None:
    connect, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(SHALLOW, 3), LANES)
    toss(engine, 3)
    requests = random_requests(2, 6, VOCAB, max_tokens=60)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    num_asked = sum(message is not None for message in client.said)
    assert 0 < client.said.count(None) < num_asked
    assert connect.is_empty()
    text = {i: [*r.prompt_ids, *plain_texts(load(), [r])[r.request_id]] for i, r in enumerate(requests)}
    for row in (row for message in client.said if message is not None for row in message.rows):
        assert row.tokens == tuple(text[row.sequence_id][row.start : row.base_length])


@pytest.mark.parametrize(("mode", "hidden"), [(Mode.LANES, True), (Mode.SERIAL, False)])
def test_over_a_real_stream_lanes_are_drafted_while_the_target_verifies(
    load: LoadTarget, drafter: Decoder, monkeypatch: pytest.MonkeyPatch, mode: Mode, hidden: bool
) -> None:
    """A pass of the target takes until what was asked for before it is drafted."""
    connect = Connect(drafter)
    connect()
    worker, pick = connect.worker, TargetModel.pick
    texts = plain_texts(load(), even_requests(4, max_tokens=31))
    outstanding = []  # of each pass: whether there was something to draft meanwhile
    with linked(worker, "engine", 30.0) as client:
        assert isinstance(client, LinkedDraftClient)

        def verifying(self: TargetModel, *args: Any) -> list[int]:
            asked = client._asked
            outstanding.append(asked is not None)
            if asked is not None:
                eventually(lambda: asked.link.read() or asked.is_over)
            return pick(self, *args)

        monkeypatch.setattr(TargetModel, "pick", verifying)
        engine = engine_of(load, client, Fixed(DEEP, 4), MirrorConfig(modes=(mode,)))
        assert run_all(engine, even_requests(4, max_tokens=31)).tokens == texts
    assert len(records(engine, mode)) >= 5
    assert any(outstanding) is hidden
