"""The oracle is what it claims: exact text, exact acceptance, and the contract of draft clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from scipy.stats import binom

from bench.oracle import KnownText, OracleDrafter, Ranking
from model.decoder import Decoder
from protocol.draft import DraftStatus
from protocol.errors import ConfigError
from protocol.outcome import Probe
from protocol.plan import DepthRule
from protocol.request import GenerateRequest
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel
from tests.bench.standins import VOCAB, Oracles, asked, oracle_of, row
from tests.drafters import test_client_contract as contract
from tests.reference.engine import plain_texts, random_requests, run_all

ALMOST_ALL = 1 - 1e-6  # of the binomial distribution


def known(requests: Sequence[GenerateRequest], texts: dict[str, list[int]]) -> list[KnownText]:
    return [KnownText(one.prompt_ids, one.sampling, tuple(texts[one.request_id])) for one in requests]


def is_binomial(successes: int, trials: int, probability: float) -> bool:
    low, high = binom.interval(ALMOST_ALL, trials, probability)
    return bool(low <= successes <= high)


def rounds_and_accepted(ranking: Ranking, text: int, first: int, last: int, length: int, depth: int) -> tuple[int, int]:
    """Replays what the target does with the drafts of positions [first, last]: the obvious loop."""
    rounds = accepted = 0
    position = first
    while position <= last:
        rounds += 1
        for _ in range(min(length, last - position)):
            if ranking.best_two(text, position, depth, right=5)[0] != 5:
                break
            accepted += 1
            position += 1
        position += 1
    return rounds, accepted


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("length", [1, 4])
def test_a_run_has_the_plain_text_and_the_acceptance_that_was_asked_for(
    target: TargetModel, acceptance: float, length: int
) -> None:
    requests = random_requests(7, 10, VOCAB, max_tokens=60)
    texts = plain_texts(target, requests)
    ranking = Ranking({2: acceptance}, runner_up=0.5, vocab_size=VOCAB, seed=3)
    oracle = OracleDrafter(known(requests, texts), ranking)
    engine = Engine(target, Fixed(DepthRule((2,)), length), oracle, EngineConfig(max_batch=4))
    done = run_all(engine, requests)
    assert done.tokens == texts
    for text, request in enumerate(requests):
        first = len(request.prompt_ids) + 1  # prefill gives the token before
        expected = rounds_and_accepted(ranking, text, first, len(request.prompt_ids) + 59, length, depth=2)
        stats = done.stats[request.request_id]
        assert (stats.rounds, stats.accepted) == expected
    if length == 1:  # every drafted token is verified
        drafted, accepted = (sum(getattr(one, name) for one in done.stats.values()) for name in ("drafted", "accepted"))
        assert drafted > 250
        assert is_binomial(accepted, drafted, acceptance)
    assert (oracle.num_open, oracle.num_lost) == (0, 0)


def test_both_choices_are_right_as_often_as_asked_for_and_never_the_same() -> None:
    ranking = Ranking({2: 0.6, 6: 0.9}, runner_up=0.7, vocab_size=11, seed=1)
    num_right = dict.fromkeys((2, 6), 0)
    num_second = dict.fromkeys((2, 6), 0)
    for position in range(20_000):
        right = position % 11
        pairs = {depth: ranking.best_two(0, position, depth, right) for depth in (2, 6)}
        assert all(first != second and {first, second} < set(range(11)) for first, second in pairs.values())
        assert pairs[6][0] == right or pairs[2][0] != right, "the shallow exit was right where the deep one errs"
        for depth, (first, second) in pairs.items():
            num_right[depth] += first == right
            num_second[depth] += second == right
    for depth, acceptance in ranking.acceptance.items():
        assert is_binomial(num_right[depth], 20_000, acceptance)
        assert is_binomial(num_second[depth], 20_000 - num_right[depth], 0.7)


def test_positions_texts_and_seeds_err_independently_and_a_seed_errs_the_same_again() -> None:
    def errors(seed: int, text: int) -> list[bool]:
        ranking = Ranking({1: 0.5}, runner_up=0, vocab_size=9, seed=seed)
        return [ranking.best_two(text, position, 1, 4)[0] != 4 for position in range(4000)]

    base = errors(0, 0)
    assert base == errors(0, 0)
    for other in (errors(1, 0), errors(0, 1), base[1:]):
        agreeing = sum(a == b for a, b in zip(base, other, strict=False))
        assert is_binomial(agreeing, len(other), 0.5)


def test_the_runner_up_of_a_wrong_proposal_is_the_right_token_where_it_was_planted() -> None:
    tokens = list(range(10, 40))
    planted, not_planted = oracle_of(tokens, {2: 0.0}), oracle_of(tokens, {2: 0.0}, runner_up=0.0)
    for oracle in (planted, not_planted):
        (block,) = oracle.draft(asked(row(1, tokens[:5], 20))).blocks
        assert not any(a == b for a, b in zip(block.tokens, tokens[5:25], strict=True))
    assert [planted.runner_up(1, at, 2) for at in range(5, 25)] == tokens[5:25]
    assert not any(not_planted.runner_up(1, at, 2) == tokens[at] for at in range(5, 25))
    assert planted.runner_up(1, 30, 2) is None
    assert planted.runner_up(9, 5, 2) is None


def test_a_cascade_leaves_where_the_acceptance_passes_its_threshold() -> None:
    tokens = list(range(10, 40))
    oracle = oracle_of(tokens, {2: 0.5, 4: 0.8, 6: 1.0})
    for thresholds, exit_ in (((0.4, 0.4), 2), ((0.5, 0.7), 4), ((0.9, 0.9), 6)):
        depth = DepthRule((2, 4, 6), thresholds)
        (block,) = oracle.draft(asked(row(1, tokens[:5], 4), depth=depth)).blocks
        assert block.exits == (exit_,) * 4
        assert block.confidences == ({2: 0.5, 4: 0.8, 6: 1.0}[exit_],) * 4
    assert block.tokens == tuple(tokens[5:9])


def test_a_row_is_drafted_at_its_own_depth_and_ends_at_its_floor() -> None:
    tokens = list(range(10, 40))
    oracle = oracle_of(tokens, {6: 1.0, 2: 0.5})
    rows = (
        row(1, tokens[:5], 4),
        replace(row(2, tokens[:5], 4), depth=DepthRule((6,))),
        replace(row(3, tokens[:5], 4), floor=0.125),
        replace(row(4, tokens[:5], 4), floor=0.124),
        replace(row(5, tokens[:5], 4), depth=DepthRule((6,)), floor=0.99),
        replace(row(6, tokens[:5], 4), depth=DepthRule((3,))),
    )
    blocks = oracle.draft(asked(*rows)).blocks
    assert [block.exits for block in blocks] == [(2,) * 4, (6,) * 4, (2,) * 3, (2,) * 4, (6,) * 4, ()]
    assert oracle.num_lost == 1
    for block in blocks[:5]:
        assert block.tokens == (tuple(tokens[5:9]) if block.exits[0] == 6 else blocks[0].tokens)[: len(block.tokens)]


def test_a_probe_tells_of_every_exit_what_its_drafts_of_the_same_positions_would_have_been() -> None:
    tokens = list(range(10, 110))
    oracle = oracle_of(tokens, {6: 0.9, 2: 0.5})
    (opened,) = oracle.draft(asked(replace(row(1, tokens[:5], 0), probe=True))).blocks
    assert opened.probe == Probe(5, ((), ()), ((), ()))
    drafted = {
        depth: oracle.draft(asked(row(depth, tokens[:5], 95), depth=DepthRule((depth,)))).blocks[0] for depth in (2, 6)
    }
    oracle.draft(asked(row(1, tokens[:20], 3, start=5)))
    (first,) = oracle.draft(asked(replace(row(1, tokens[:60], 3, start=20), probe=True))).blocks
    (second,) = oracle.draft(asked(replace(row(1, tokens, 0, start=60), probe=True))).blocks
    assert len(first.tokens) == 3
    for probe, told in ((first.probe, range(5, 60)), (second.probe, range(60, 100))):
        right = tuple(tuple(drafted[depth].tokens[at - 5] == tokens[at] for at in told) for depth in (2, 6))
        assert probe == Probe(told.start, right, ((0.5,) * len(told), (0.9,) * len(told)))
        assert 0 < sum(right[0]) < sum(right[1])


def test_of_a_text_that_is_not_known_nothing_is_told() -> None:
    tokens = list(range(10, 40))
    oracle = oracle_of(tokens, {2: 1.0})
    oracle.draft(asked(row(1, tokens[:5], 0)))
    (block,) = oracle.draft(asked(replace(row(1, [*tokens[:5], 99], 0, start=5), probe=True))).blocks
    assert (block.status, block.probe, oracle.num_lost) == (DraftStatus.OK, None, 0)


def test_what_is_not_known_is_not_drafted_and_counted() -> None:
    tokens = list(range(10, 40))
    oracle = oracle_of(tokens, {2: 1.0})
    left = [*tokens[:5], 99]
    for request in (asked(row(1, left, 3)), asked(row(2, tokens[:5], 3), depth=DepthRule((3,)))):
        (block,) = oracle.draft(request).blocks
        assert (block.status, block.tokens) == (DraftStatus.OK, ())
    assert oracle.num_lost == 2
    (block,) = oracle.draft(asked(row(2, tokens[:28], 5))).blocks
    assert block.tokens == tuple(tokens[28:])


@pytest.mark.parametrize(
    ("acceptance", "runner_up", "vocab_size"), [({}, 0.5, 9), ({2: 1.1}, 0.5, 9), ({2: 0.5}, -0.1, 9), ({2: 0.5}, 0, 2)]
)
def test_probabilities_that_cannot_be_are_refused(
    acceptance: dict[int, float], runner_up: float, vocab_size: int
) -> None:
    with pytest.raises(ConfigError):
        Ranking(acceptance, runner_up, vocab_size)


@pytest.mark.parametrize(
    "keeps_to",
    [
        contract.test_the_next_round_carries_only_what_is_new,
        contract.test_opening_hands_over_context_so_that_a_draft_needs_none,
        contract.test_an_unknown_sequence_needs_context_and_is_drafted_for_when_it_comes,
        contract.test_a_full_pool_says_so_row_by_row,
        contract.test_closing_forgets_sequences_and_does_not_mind_unknown_ones,
        contract.test_two_clients_with_the_same_sequence_ids_do_not_meet,
    ],
    ids=lambda test: test.__name__,
)
def test_the_oracle_keeps_to_the_contract_of_draft_clients(keeps_to: Callable[..., None], decoder: Decoder) -> None:
    """All of it but what a model decides (exits, confidences) and what takes time (deadlines)."""
    oracles = Oracles(decoder)
    given = {"connect": oracles, "worker": oracles, "llama": decoder}
    names = keeps_to.__code__.co_varnames[: keeps_to.__code__.co_argcount]
    keeps_to(**{name: given[name] for name in names})
