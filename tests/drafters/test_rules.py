"""What a row may ask for itself: a depth other than its request's, and a probability at which it stops."""

from __future__ import annotations

import random

import pytest

from drafters.limits import PoolLimits
from model.decoder import Decoder
from protocol.draft import DraftStatus
from tests.drafters.pool import DEEP, EXITS, GREEDY, SHALLOW, Pool, expected, row, text
from tests.reference.drafting import draft_from_scratch
from tests.sizes import quick


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_rows_of_one_request_draft_at_their_own_depths(llama: Decoder, ahead: int) -> None:
    pool, tokens = Pool(llama, PoolLimits(ahead=ahead)), text(9)
    pool.submit(row(0, tokens, 4), *(row(1 + index, tokens, 4, depth=depth) for index, depth in enumerate(EXITS)))
    pool.run()
    blocks = pool.blocks()
    for sequence_id, depth in enumerate((DEEP, *EXITS)):
        drafted = draft_from_scratch(llama, tokens, 4, depth, GREEDY)
        block = blocks[sequence_id]
        assert block.tokens == tuple(token for token, _ in drafted)


def test_a_row_with_a_depth_of_its_own_does_not_mind_that_the_requests_is_unknown(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(4)
    block = pool.ask(row(1, tokens, 2, depth=SHALLOW), depth=3)
    assert block.tokens == expected(llama, tokens, 2, SHALLOW)


def test_an_unknown_depth_is_logged_by_name_and_answered_with_nothing(
    llama: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(llama)
    block = pool.ask(row(1, text(4), 2), depth=3)
    assert (block.status, block.tokens) == (DraftStatus.OK, ())
    assert "depth 3 is not an exit of this drafter; it has (1, 2, 4)" in caplog.text


def test_only_the_rows_of_an_unknown_depth_are_answered_with_nothing(
    llama: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    pool, tokens = Pool(llama), text(4)
    pool.submit(
        row(1, tokens, 2),
        row(2, tokens, 2, depth=3),
        row(3, tokens, 2, depth=SHALLOW),
        row(4, tokens, 2, depth=3),
    )
    assert [(block.status, block.tokens) for block in pool.blocks().values()] == [(DraftStatus.OK, ())] * 2
    pool.run()
    assert {one: block.tokens for one, block in pool.blocks().items() if block.tokens} == {
        1: expected(llama, tokens, 2),
        3: expected(llama, tokens, 2, SHALLOW),
    }
    assert caplog.text.count("depth 3 is not an exit of this drafter; it has (1, 2, 4)") == 1


@pytest.mark.parametrize("ahead", [1, 3, 16])
@pytest.mark.parametrize("seed", quick(range(6), 2))
def test_a_draft_ends_behind_the_token_at_which_the_product_of_its_confidences_reaches_the_floor(
    llama: Decoder, seed: int, ahead: int
) -> None:
    """Several passes for one draft, rows that end at different places in a pass, and rounds that follow."""
    rng, pool = random.Random(seed), Pool(llama, PoolLimits(ahead=ahead))
    tokens = {sequence_id: text(rng.randint(2, 9), seed + sequence_id) for sequence_id in range(4)}
    sent, lengths = dict.fromkeys(tokens, 0), set()
    for round_id in range(6):
        shared = rng.choice(EXITS)
        floors = {one: rng.choice([0.0, 10 ** -rng.uniform(0, 5)]) for one in tokens}
        pool.submit(
            *(row(one, own[sent[one] :], 12, sent[one], stop_probability=floors[one]) for one, own in tokens.items()),
            depth=shared,
            round_id=round_id,
        )
        pool.run()
        for one, own in tokens.items():
            drafted = draft_from_scratch(llama, own, 12, shared, GREEDY, floors[one])
            block = pool.blocks(round_id)[one]
            assert block.tokens == tuple(token for token, _ in drafted)
            lengths.add(len(drafted))
            sent[one] = len(own)
            own += [*block.tokens[: rng.randint(0, len(drafted))], rng.randrange(160)]
    assert len(lengths) > 3


def test_a_floor_of_one_is_one_token_and_none_is_the_whole_length(llama: Decoder) -> None:
    pool, tokens = Pool(llama, PoolLimits(ahead=4)), text(9)
    assert pool.ask(row(1, tokens, 6, stop_probability=1.0)).tokens == expected(llama, tokens, 1)
    assert pool.ask(row(1, [], 6, start=9, stop_probability=0.0)).tokens == expected(llama, tokens, 6)
    assert pool.ask(row(1, [], 6, start=9, stop_probability=-1.0)).tokens == expected(llama, tokens, 6)
