"""What is sent is what arrives: messages at random, through bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply
from protocol.branch import prefix_hash as key_of
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.limits import MAX_DEPTH, MessageLimits, limits_of, num_tokens, parts
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


def tokens(rng: random.Random, most: int = 6) -> tuple[int, ...]:
    return tuple(rng.randrange(1 << 18) for _ in range(rng.randint(0, most)))


def single(rng: random.Random) -> float:
    """A confidence that a float holds."""
    return rng.randrange(1 << 20) / (1 << 20)


def depth(rng: random.Random) -> int:
    return rng.randint(1, MAX_DEPTH)


def row(rng: random.Random) -> DraftRow:
    sampling = SamplingParams(rng.random(), rng.randrange(50), rng.uniform(0.1, 1), rng.random(), rng.getrandbits(64))
    own = rng.choice([None, depth(rng)])
    return DraftRow(rng.getrandbits(40), rng.randrange(9), tokens(rng), rng.randrange(9), sampling, own, rng.random())


def ahead(rng: random.Random) -> AheadRequest:
    rows = (AheadRow(row(rng), tokens(rng), rng.randrange(9), rng.random()) for _ in range(3))
    return AheadRequest("target", rng.getrandbits(50), depth(rng), tuple(rows))


def draft(rng: random.Random) -> DraftRequest:
    rows = tuple(row(rng) for _ in range(3))
    return DraftRequest("target", rng.getrandbits(50), depth(rng), rows, rng.choice([0.0, rng.uniform(0, 100)]))


def close(rng: random.Random) -> CloseSequences:
    return CloseSequences("target", tokens(rng))


def draft_of(rng: random.Random, most: int = 6) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens and confidences."""
    drafted = tokens(rng, most)
    return drafted, tuple(single(rng) for _ in drafted)


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
            *draft_of(rng),
            rng.random() < 0.5,
            round_id,
        )
        for _ in range(rng.randrange(3))
    )
    return BranchReply("target", round_id, own)


@pytest.mark.parametrize("make", [draft, ahead, close])
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


@pytest.mark.parametrize("make", [draft, ahead])
@pytest.mark.parametrize("seed", range(10))
def test_a_message_goes_in_parts_that_are_within_the_limits_and_lose_nothing(
    make: Callable[[random.Random], DraftRequest | AheadRequest], seed: int
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
        DraftRow(1 << 62 | name, 0, (160,) * 100, 64, SamplingParams(0.5, 5, 0.5, 0.5, (1 << 64) - 1), MAX_DEPTH, 0.5)
        for name in range(4)
    )
    message = DraftRequest("t", 1 << 62, MAX_DEPTH, rows)
    assert list(parts(message, limits)) == [message]
    assert decode_target(encode_target(message), "t", limits) == message
