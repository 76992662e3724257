"""What is sent is what arrives: messages at random, through bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, BranchSource, ExitHint, HintRow
from protocol.branch import prefix_hash as key_of
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.limits import MAX_EXITS, MessageLimits, limits_of, num_tokens, parts
from protocol.pb import draft_pb2 as pb
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from protocol.wire import (
    CloseSequences,
    PoolMessage,
    TargetMessage,
    decode_pool,
    decode_target,
    encode_pool,
    encode_target,
)

LIMITS = MessageLimits()
RULE = DepthRule(tuple(range(1, MAX_EXITS + 1)), (0.5,) * (MAX_EXITS - 1))


def tokens(rng: random.Random, most: int = 6) -> tuple[int, ...]:
    return tuple(rng.randrange(1 << 18) for _ in range(rng.randint(0, most)))


def single(rng: random.Random) -> float:
    """A confidence that a float holds."""
    return rng.randrange(1 << 20) / (1 << 20)


def rule(rng: random.Random) -> DepthRule:
    exits = tuple(sorted(rng.sample(range(1, 30), rng.randint(1, 3))))
    return DepthRule(exits, tuple(single(rng) for _ in exits[1:]))


def row(rng: random.Random) -> DraftRow:
    sampling = SamplingParams(rng.random(), rng.randrange(50), rng.uniform(0.1, 1), rng.random(), rng.getrandbits(64))
    depth = rng.choice([None, rule(rng)])
    return DraftRow(rng.getrandbits(40), rng.randrange(9), tokens(rng), rng.randrange(9), sampling, depth, rng.random())


def ahead(rng: random.Random) -> AheadRequest:
    rows = (
        AheadRow(row(rng), tokens(rng), rng.randrange(9), rng.randrange(9), rng.random(), rng.uniform(0.05, 20))
        for _ in range(3)
    )
    return AheadRequest("target", rng.getrandbits(50), rule(rng), tuple(rows))


def hint(rng: random.Random) -> ExitHint:
    rows = tuple(HintRow(own, rng.randrange(99), tuple(tokens(rng) for _ in range(own))) for own in range(4))
    return ExitHint("target", rng.getrandbits(50), rows)


def draft(rng: random.Random) -> DraftRequest:
    rows = tuple(row(rng) for _ in range(3))
    return DraftRequest("target", rng.getrandbits(50), rule(rng), rows, rng.choice([0.0, rng.uniform(0, 100)]))


def close(rng: random.Random) -> CloseSequences:
    return CloseSequences("target", tokens(rng))


def draft_of(rng: random.Random, most: int = 6) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Tokens, exits and confidences."""
    drafted = tokens(rng, most)
    return drafted, tuple(rng.randrange(1, 30) for _ in drafted), tuple(single(rng) for _ in drafted)


def reply(rng: random.Random) -> DraftReply:
    blocks = tuple(
        DraftBlock(own, 9, status, *draft_of(rng, 6 if status is DraftStatus.OK else 0))
        for own, status in enumerate(DraftStatus)
    )
    return DraftReply("target", rng.getrandbits(50), blocks, rng.random())


def branches(rng: random.Random) -> BranchReply:
    round_id = rng.getrandbits(50)
    own = tuple(
        Branch(
            3,
            rng.randrange(99),
            key_of(tokens(rng)),
            source,
            *draft_of(rng),
            rng.random() < 0.5,
            round_id,
        )
        for source in BranchSource
    )
    return BranchReply("target", round_id, own, rng.randrange(5))


@pytest.mark.parametrize("make", [draft, ahead, hint, close])
@pytest.mark.parametrize("seed", range(20))
def test_what_a_target_sends_is_what_the_pool_gets(make: Callable[[random.Random], TargetMessage], seed: int) -> None:
    message = make(random.Random(seed))
    assert decode_target(encode_target(message), "target", MessageLimits()) == message


@pytest.mark.parametrize("make", [reply, branches])
@pytest.mark.parametrize("seed", range(20))
def test_what_the_pool_sends_is_what_a_target_gets(make: Callable[[random.Random], PoolMessage], seed: int) -> None:
    message = make(random.Random(seed))
    assert decode_pool(encode_pool(message), "target") == message


def test_a_message_of_an_unknown_kind_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="a target sent a message of unknown kind; deploy both sides"):
        decode_target(b"", "target", MessageLimits())
    with pytest.raises(ValueError, match="a pool sent a message of unknown kind; deploy both sides"):
        decode_pool(b"", "target")


def test_a_source_from_a_newer_version_counts_as_the_drafters_own() -> None:
    newer = pb.PoolMessage(branches=pb.BranchReply(branches=[pb.Branch(key=1, source=99)]))
    decoded = decode_pool(newer.SerializeToString(), "target")
    assert isinstance(decoded, BranchReply)
    assert decoded.branches == (Branch(0, 0, 1, BranchSource.RUNNER_UP, ()),)


def test_the_key_is_fnv_1a_over_token_ids_and_goes_on_from_what_came_before() -> None:
    assert key_of([]) == 0xCBF29CE484222325
    assert key_of([ord("a")]) == 0xAF63DC4C8601EC8C, "the published vector of FNV-1a 64 for 'a'"
    assert key_of([3, 4, 5]) == key_of([5], before=key_of([3, 4]))
    assert len({key_of(own) for own in ([1, 2], [2, 1], [1], [1, 2, 0])}) == 4


def test_nothing_is_said_of_who_sends_and_the_link_decides() -> None:
    sent = draft(random.Random(1))
    assert encode_target(sent) == encode_target(replace(sent, incarnation="victim"))
    got = decode_target(encode_target(replace(sent, incarnation="victim")), "stranger#1", LIMITS)
    assert isinstance(got, DraftRequest)
    assert got.incarnation == "stranger#1"


NAN, INF = float("nan"), float("inf")
TINY = MessageLimits(rows=2, tokens=10)


def asking(**changed: Any) -> pb.TargetMessage:
    fields: dict[str, Any] = {"sequence_id": 1, "tokens": [1, 2], "sampling": pb.SamplingParams(top_p=1.0)}
    return pb.TargetMessage(
        draft=pb.DraftRequest(depth=pb.DepthRule(exits=[2]), rows=[pb.DraftRow(**fields | changed)])
    )


def within_ms(deadline_ms: float) -> pb.TargetMessage:
    message = asking()
    message.draft.deadline_ms = deadline_ms
    return message


def going_ahead(**changed: Any) -> pb.TargetMessage:
    context = asking().draft.rows[0]
    row = pb.AheadRow(**{"context": context, "proposal": [3], "length": 2, "fan_out": 2, "exponent": 1.0} | changed)
    return pb.TargetMessage(ahead=pb.AheadRequest(depth=pb.DepthRule(exits=[2]), rows=[row]))


def hinting(**changed: Any) -> pb.TargetMessage:
    row = pb.HintRow(**{"sequence_id": 1, "base_length": 3, "picks": [pb.Picks(tokens=[1])]} | changed)
    return pb.TargetMessage(hint=pb.ExitHint(rows=[row]))


def sampling(**changed: Any) -> pb.SamplingParams:
    return pb.SamplingParams(**{"top_p": 1.0} | changed)


def of_rule(exits: Sequence[int], thresholds: Sequence[float] = ()) -> pb.TargetMessage:
    return asking(depth=pb.DepthRule(exits=exits, thresholds=thresholds))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (going_ahead(exponent=-5000.0), "exponent -5000.0"),
        (going_ahead(exponent=NAN), "exponent nan"),
        (going_ahead(exponent=INF), "exponent inf"),
        (going_ahead(exponent=0.0), "exponent 0.0"),
        (going_ahead(stop_probability=1.5), "stop_probability 1.5"),
        (going_ahead(fan_out=9), "9 branches of a row"),
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
        (of_rule([]), "must ascend"),
        (of_rule([3, 3], [0.5]), "must ascend"),
        (of_rule([0]), "exits (0,)"),
        (of_rule([1 << 20]), "exits (1048576,)"),
        (of_rule([1, 2], [NAN]), "a threshold nan"),
        (of_rule([1, 2], [1.5]), "a threshold 1.5"),
        (of_rule([1, 2]), "2 exits need 1 thresholds"),
        (of_rule(range(1, 40), [0.5] * 38), "39 exits of a depth rule"),
        (hinting(base_length=1 << 25), "a position 33554432"),
        (hinting(picks=[pb.Picks(tokens=[1 << 31])]), "token id"),
        (hinting(picks=[pb.Picks()] * 11), "11 tokens, 10 are allowed"),
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
    fields = {"status": pb.STATUS_OK, "tokens": [1, 2], "exits": [2, 2], "confidences": [0.5, 0.5]}
    return pb.PoolMessage(reply=pb.DraftReply(blocks=[pb.DraftBlock(**fields | changed)]))


def branched(**changed: Any) -> pb.PoolMessage:
    fields = {"tokens": [1, 2], "exits": [2, 2], "confidences": [0.5, 0.5]}
    return pb.PoolMessage(branches=pb.BranchReply(branches=[pb.Branch(**fields | changed)]))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (drafted(confidences=[0.5, NAN]), "a confidence nan"),
        (drafted(confidences=[0.5, 1.5]), "a confidence 1.5"),
        (drafted(confidences=[0.5]), "1 confidences came with 2 tokens"),
        (drafted(exits=[]), "0 exits came with 2 tokens"),
        (drafted(exits=[0, 2]), "exits (0, 2)"),
        (drafted(tokens=[1, 1 << 31]), "token id"),
        (drafted(tokens=range(65), exits=[2] * 65, confidences=[0.5] * 65), "65 tokens of a draft"),
        (drafted(status=pb.STATUS_BUSY), "2 tokens of a block that is busy"),
        (drafted(base_length=1 << 30), "a position"),
        (branched(confidences=[NAN, 0.5]), "a confidence nan"),
        (branched(exits=[2]), "1 exits came with 2 tokens"),
        (branched(tokens=range(65), exits=[2] * 65, confidences=[0.5] * 65), "65 tokens of a draft"),
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


@pytest.mark.parametrize("make", [draft, ahead, hint])
@pytest.mark.parametrize("seed", range(10))
def test_a_message_goes_in_parts_that_are_within_the_limits_and_lose_nothing(
    make: Callable[[random.Random], DraftRequest | AheadRequest | ExitHint], seed: int
) -> None:
    whole: Any = make(random.Random(seed))
    limits = MessageLimits(rows=2, tokens=16)
    made: list[Any] = list(parts(whole, limits))
    assert all(len(part.rows) <= 2 for part in made)
    assert all(len(part.rows) == 1 or sum(map(num_tokens, part.rows)) <= 16 for part in made)
    assert tuple(row for part in made for row in part.rows) == whole.rows
    assert len(made) >= 2


def test_what_a_full_pool_asks_for_fits_one_message() -> None:
    limits = limits_of(4, 100)
    rows = tuple(
        DraftRow(1 << 62 | name, 0, (160,) * 100, 64, SamplingParams(0.5, 5, 0.5, 0.5, (1 << 64) - 1), RULE, 0.5)
        for name in range(4)
    )
    message = DraftRequest("t", 1 << 62, RULE, rows)
    assert list(parts(message, limits)) == [message]
    assert decode_target(encode_target(message), "t", limits) == message
