"""What a target that means harm can do to the others, over real sockets, and what it did before links were closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.load import load_decoder
from protocol.branch import AheadRequest, AheadRow
from protocol.draft import DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.pb import draft_pb2 as pb
from protocol.request import GREEDY
from protocol.wire import CloseSequences, decode_pool, encode_target
from tests.deployments.harness import wait_until
from tests.link.contract import linked, replica_of
from tests.link.strangers import hung_up, proved, received, send

DEEP = 4
PRIVATE = (3, 14, 15, 92, 65, 35, 89, 79)


@pytest.fixture
def worker(family: Path) -> DraftWorker:
    decoder = load_decoder(family / "drafter", dtype=torch.float32)
    return DraftWorker(NestedDrafter(decoder, (2, 4), num_pages=32, page_size=8), PoolLimits(max_rows=4))


def row(start: int, tokens: tuple[int, ...], length: int, sequence_id: int = 1) -> DraftRow:
    return DraftRow(sequence_id, start, tokens, length, GREEDY)


def asked(*rows: DraftRow, round_id: int = 1) -> DraftRequest:
    return DraftRequest("victim", round_id, DEEP, rows)


def with_stop(stop: float) -> bytes:
    context = AheadRow(row(0, (1, 2, 3), 0), (4, 5), 3)
    message = pb.TargetMessage.FromString(encode_target(AheadRequest("", 1, DEEP, (context,))))
    message.ahead.rows[0].stop_probability = stop
    return message.SerializeToString()


@pytest.mark.parametrize("stop", [-5000.0, float("nan"), float("-inf"), 1.5, 1e300])
def test_a_stop_that_is_no_probability_ends_its_own_link_and_nothing_else(worker: DraftWorker, stop: float) -> None:
    with linked(worker, "victim", 10.0) as victim:
        replica = replica_of(worker)
        assert victim.draft(asked(row(0, PRIVATE, 4))) is not None
        with proved(replica.member.address, replica.secret) as sock:
            send(sock, with_stop(stop))
            assert hung_up(sock)
        assert replica.thread.heartbeat_age_s() < 60
        reply = victim.draft(asked(row(8, (1,), 4), round_id=2))
        assert reply is not None
        assert reply.blocks[0].status is DraftStatus.OK, "it is still known"


def test_who_says_the_name_of_another_target_gets_none_of_its_sequences(worker: DraftWorker) -> None:
    """The first k tokens of a sequence gave away what the drafter makes of them, for every k; and its end dropped all
    that the other target had.
    """
    with linked(worker, "victim", 10.0) as victim:
        replica = replica_of(worker)
        assert victim.draft(asked(row(0, PRIVATE, 4))) is not None
        with proved(replica.member.address, replica.secret, "victim") as sock:
            for start in range(1, len(PRIVATE) + 1):
                send(sock, encode_target(asked(row(start, (), 8), round_id=start)))
                reply = decode_pool(received(sock), "victim")
                assert isinstance(reply, DraftReply)
                assert [(block.status, block.tokens) for block in reply.blocks] == [(DraftStatus.NEED_CONTEXT, ())]
            send(sock, encode_target(CloseSequences("victim", (1,))))
            send(sock, encode_target(asked(row(1, (), 8), round_id=99)))
            received(sock)
        wait_until(lambda: len(replica.server._targets) == 1)
        reply = victim.draft(asked(row(8, (1,), 4), round_id=2))
        assert reply is not None
        assert reply.blocks[0].status is DraftStatus.OK, "it is still known"
