"""What no peer of this version sends is refused with its name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from protocol.draft import DraftReply
from protocol.limits import MessageLimits
from protocol.pb import draft_pb2 as pb
from protocol.wire import (
    decode_pool,
    decode_target,
)

LIMITS = MessageLimits()

NAN, INF = float("nan"), float("inf")
TINY = MessageLimits(rows=2, tokens=10)


def asking(**changed: Any) -> pb.TargetMessage:
    fields: dict[str, Any] = {"sequence_id": 1, "tokens": [1, 2], "sampling": pb.SamplingParams(top_p=1.0)}
    return pb.TargetMessage(draft=pb.DraftRequest(depth=2, rows=[pb.DraftRow(**fields | changed)]))


def within_ms(deadline_ms: float) -> pb.TargetMessage:
    message = asking()
    message.draft.deadline_ms = deadline_ms
    return message


def going_ahead(**changed: Any) -> pb.TargetMessage:
    context = asking().draft.rows[0]
    row = pb.AheadRow(**{"context": context, "proposal": [3], "length": 2} | changed)
    return pb.TargetMessage(ahead=pb.AheadRequest(depth=2, rows=[row]))


def sampling(**changed: Any) -> pb.SamplingParams:
    return pb.SamplingParams(**{"top_p": 1.0} | changed)


def at_depth(depth: int) -> pb.TargetMessage:
    return pb.TargetMessage(draft=pb.DraftRequest(depth=depth))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (going_ahead(stop_probability=1.5), "stop_probability 1.5"),
        (going_ahead(length=65), "65 tokens of a branch"),
        (going_ahead(proposal=[1 << 31]), "token id 2147483648"),
        (asking(stop_probability=NAN), "stop_probability nan"),
        (asking(stop_probability=-0.1), "stop_probability -0.1"),
        (within_ms(NAN), "deadline_ms nan"),
        (within_ms(-1.0), "deadline_ms -1.0"),
        (within_ms(INF), "deadline_ms inf"),
        (within_ms(2e9), "deadline_ms 2000000000.0"),
        (asking(length=65), "65 tokens to draft"),
        (asking(tokens=[(1 << 32) - 1]), "token id 4294967295"),
        (asking(start=1 << 24), "a position 16777218"),
        (asking(tokens=range(11)), "11 tokens, 10 are allowed"),
        (asking(sampling=sampling(temperature=NAN)), "temperature nan"),
        (asking(sampling=sampling(top_p=0.0)), "top_p 0.0"),
        (asking(sampling=sampling(top_k=1 << 31)), "top_k 2147483648"),
        (asking(sampling=sampling(min_p=-INF)), "min_p -inf"),
        (at_depth(0), "depth 0 is not in [1, 4096]"),
        (at_depth(1 << 20), "depth 1048576 is not in [1, 4096]"),
        (asking(depth=1 << 20), "depth 1048576 is not in [1, 4096]"),
        (pb.TargetMessage(ahead=pb.AheadRequest()), "depth 0 is not in [1, 4096]"),
        (asking(tokens=[1] * 11), "11 tokens, 10 are allowed"),
        (going_ahead(proposal=[1] * 9), "11 tokens, 10 are allowed"),
        (pb.TargetMessage(draft=pb.DraftRequest(rows=[asking().draft.rows[0]] * 2)), "a sequence comes twice"),
        (pb.TargetMessage(draft=pb.DraftRequest(rows=[asking().draft.rows[0]] * 3)), "3 rows, 2 are allowed"),
        (pb.TargetMessage(close=pb.Close(sequence_ids=range(4097))), "4097 sequences to close"),
        (pb.TargetMessage(), "unknown kind"),
    ],
)
def test_what_no_target_sends_is_refused_with_its_name(message: pb.TargetMessage, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        decode_target(message.SerializeToString(), "target", TINY)


def drafted(**changed: Any) -> pb.PoolMessage:
    fields = {"status": pb.STATUS_OK, "tokens": [1, 2], "confidences": [0.5, 0.5]}
    return pb.PoolMessage(reply=pb.DraftReply(blocks=[pb.DraftBlock(**fields | changed)]))


def branched(**changed: Any) -> pb.PoolMessage:
    fields = {"tokens": [1, 2], "confidences": [0.5, 0.5]}
    return pb.PoolMessage(branches=pb.BranchReply(branches=[pb.Branch(**fields | changed)]))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (drafted(confidences=[0.5, NAN]), "a confidence nan"),
        (drafted(confidences=[0.5, 1.5]), "a confidence 1.5"),
        (drafted(confidences=[0.5]), "1 confidences came with 2 tokens"),
        (drafted(tokens=[1, 1 << 31]), "token id"),
        (drafted(tokens=range(65), confidences=[0.5] * 65), "65 tokens of a draft"),
        (drafted(status=pb.STATUS_BUSY), "2 tokens of a block that is busy"),
        (drafted(base_length=1 << 30), "a position"),
        (branched(confidences=[NAN, 0.5]), "a confidence nan"),
        (branched(confidences=[0.5]), "1 confidences came with 2 tokens"),
        (branched(tokens=range(65), confidences=[0.5] * 65), "65 tokens of a draft"),
        (pb.PoolMessage(reply=pb.DraftReply(wait_ms=NAN)), "wait_ms nan"),
        (pb.PoolMessage(reply=pb.DraftReply(wait_ms=-1.0)), "wait_ms -1.0"),
    ],
)
def test_what_no_pool_sends_is_refused_with_its_name(message: pb.PoolMessage, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        decode_pool(message.SerializeToString(), "target")


def test_a_confidence_that_rounding_took_beyond_one_is_one() -> None:
    reply = decode_pool(drafted(confidences=[1.0000001, 0.5]).SerializeToString(), "target")
    assert isinstance(reply, DraftReply)
    assert reply.blocks[0].confidences == (1.0, 0.5)


def test_bytes_beyond_what_the_rows_need_are_refused_unread() -> None:
    with pytest.raises(ValueError, match="bytes came"):
        decode_target(bytes(TINY.num_bytes + 1), "target", TINY)
    with pytest.raises(ValueError, match="no message"):
        decode_target(b"\xff\xff\xff", "target", TINY)
