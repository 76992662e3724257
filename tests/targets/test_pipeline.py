"""The pipeline against the obvious one, which compares whole texts and keeps everything for ever."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

import targets.pipeline
from protocol.branch import Branch, prefix_hash
from protocol.record import Origin
from targets.pipeline import TRIES, Order, Pipeline

ORDER = Order(2, 4, 1)
LETTERS = 3  # few, so that outcomes often coincide
Tokens = tuple[int, ...]


def branch(sequence_id: int, text: Sequence[int], tokens: Tokens) -> Branch:
    count = len(tokens)
    key = prefix_hash(text)
    return Branch(sequence_id, len(text), key, tokens, (0.5,) * count, round_id=1)


def drafted(text: Tokens, count: int) -> Tokens:
    """A stand-in for a drafter: what it says depends on the whole text."""
    known = list(text)
    for _ in range(count):
        known.append(hash(tuple(known)) % LETTERS)
    return tuple(known[len(text) :])


class Game:
    """Random texts, a pool that drafts behind some of their outcomes, and a link that is not to be trusted.

    behind: by sequence and whole text, how many tokens were drafted there in this round, at most.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pipeline = Pipeline()
        self.texts = {name: tuple(self.rng.randrange(LETTERS) for _ in range(4)) for name in range(3)}
        self.behind: dict[int, Counter[Tokens]] = {name: Counter() for name in self.texts}
        self.late: list[Branch] = []
        self.origins: Counter[Origin | None] = Counter()

    def play(self, name: int) -> None:
        """What is found was drafted behind the committed tokens, and nothing that came in time is missed."""
        text, rng = self.texts[name], self.rng
        proposal = self.pipeline.resolve(name, text)
        tokens = proposal.tokens if proposal else drafted(text, rng.randint(0, 5))
        self.origins[proposal.origin if proposal else None] += 1
        if proposal:
            assert tokens == drafted(text, len(tokens))
            assert len(tokens) == len(proposal.confidences)
        assert len(tokens if proposal else ()) >= self.behind[name][text]
        num_verified = rng.randint(0, len(tokens))
        self.behind[name] = Counter()
        if proposal:  # what is left unverified of it is at hand
            self.behind[name][(*text, *tokens[: num_verified + 1])] = len(tokens[num_verified + 1 :])
        self.pipeline.begin(name, num_verified, ORDER)
        self.deliver(name, tokens[:num_verified])
        self.texts[name] = (*text, *tokens[: rng.randint(0, num_verified)], rng.randrange(LETTERS))

    def deliver(self, name: int, verified: Tokens) -> None:
        """Branches behind random outcomes of the round: some now, some twice, some too late, some of another round."""
        rng, text = self.rng, self.texts[name]
        for _ in range(rng.randint(0, 6)):
            outcome = (*text, *verified[: rng.randint(0, len(verified))], rng.randrange(LETTERS))
            tokens = drafted(outcome, rng.randint(0, 4))
            ready = branch(name, outcome, tokens)
            if rng.random() < 0.3:
                self.late.append(ready)
                continue
            self.behind[name][outcome] = max(self.behind[name][outcome], len(tokens))
            self.pipeline.take([ready] * rng.choice([1, 1, 2]))
        rng.shuffle(self.late)
        while self.late and rng.random() < 0.5:
            self.pipeline.take([self.late.pop()])  # some have the texts of this very round: they are as good as any
        self.pipeline.take([branch(99, text, (1, 2)), branch(name, (*text, 0), ())])


def play(seed: int, num_rounds: int = 300) -> Game:
    game = Game(seed)
    for _ in range(num_rounds):
        game.play(game.rng.choice(list(game.texts)))
    return game


@pytest.mark.parametrize("seed", range(60))
def test_what_is_found_was_drafted_behind_the_committed_tokens_and_nothing_in_time_is_missed(seed: int) -> None:
    origins = play(seed).origins
    assert origins[None] > 5
    assert origins.total() - origins[None] > 5


def test_a_key_that_did_not_know_the_tokens_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(tokens: Sequence[int], before: int = 0) -> int:
        return 0

    monkeypatch.setattr(targets.pipeline, "prefix_hash", careless)
    monkeypatch.setitem(globals(), "prefix_hash", careless)
    with pytest.raises(AssertionError):
        play(0)


def in_flight(text: Tokens = (7, 8), num_verified: int = 3) -> Pipeline:
    pipeline = Pipeline()
    pipeline.resolve(1, text)
    pipeline.begin(1, num_verified, ORDER)
    return pipeline


def num_kept(pipeline: Pipeline) -> int:
    return sum(len(flight.branches) for flight in pipeline._flights.values())


def half_verified() -> Pipeline:
    """A branch of five tokens was found, and two of them are verified."""
    pipeline = in_flight((7,), num_verified=0)
    pipeline.take([branch(1, (7, 8), (1, 2, 3, 4, 5))])
    assert pipeline.resolve(1, (7, 8)) is not None
    pipeline.begin(1, 2, ORDER)
    return pipeline


def test_what_was_left_unverified_is_the_next_proposal_where_the_target_agrees_with_its_first_token() -> None:
    found = half_verified().resolve(1, (7, 8, 1, 2, 3))
    assert found is not None
    assert (found.tokens, found.origin, found.length) == ((4, 5), Origin.AHEAD, 1)


def test_it_is_none_where_the_target_disagrees_or_refuses_a_token_before() -> None:
    for text in ((7, 8, 1, 2, 9), (7, 8, 1, 3)):
        assert half_verified().resolve(1, text) is None


def test_what_is_late_foreign_or_beyond_the_round_is_fenced_off() -> None:
    pipeline = in_flight()
    fits = branch(1, (7, 8, 1), (4,))
    strangers = [
        replace(fits, sequence_id=2),
        branch(1, (7, 8), (4,)),  # behind what is known already
        branch(1, (7, 8, 1, 2, 3, 4, 5), (4,)),  # further than the round may come
        branch(1, (7, 8, 1), ()),
    ]
    pipeline.take([*strangers, fits, fits])
    assert num_kept(pipeline) == 1


def test_half_a_branch_is_a_proposal_that_was_asked_for_as_short_as_it_is() -> None:
    half = replace(branch(1, (7, 8, 1), (4, 5)), goes_on=True)
    pipeline = in_flight()
    pipeline.take([half])
    found = pipeline.resolve(1, (7, 8, 1))
    assert found is not None
    assert (found.tokens, found.length) == ((4, 5), 2), "or it would count as stopped in doubt"


def test_the_whole_of_a_branch_takes_the_place_of_half_of_it_whichever_comes_first() -> None:
    half, whole = replace(branch(1, (7, 8, 1), (4, 5)), goes_on=True), branch(1, (7, 8, 1), (4, 5, 6))
    for order in ([half, whole], [whole, half]):
        pipeline = in_flight()
        pipeline.take(order)
        assert num_kept(pipeline) == 1
        found = pipeline.resolve(1, (7, 8, 1))
        assert found is not None
        assert (found.tokens, found.length) == ((4, 5, 6), ORDER.length)


def test_branches_are_awaited_from_when_they_are_asked_for_until_the_first_part_of_one_comes() -> None:
    pipeline = Pipeline()
    assert not pipeline.awaits(1)
    pipeline = in_flight()
    assert pipeline.awaits(1)
    pipeline.take([branch(1, (7, 8), (4,))])  # fenced off
    assert pipeline.awaits(1)
    pipeline.take([replace(branch(1, (7, 8, 1), (4,)), round_id=ORDER.round_id - 1)])
    assert pipeline.awaits(1), "that one was late"
    pipeline.take([replace(branch(1, (7, 8, 2), (4,)), goes_on=True)])
    assert not pipeline.awaits(1)
    pipeline.resolve(1, (7, 8, 1))
    assert not pipeline.awaits(1)
    pipeline.begin(1, 0, None)
    assert not pipeline.awaits(1), "none were asked for"


def test_a_sequence_whose_orders_bring_nothing_starves_and_is_awaited_now_and_then_until_something_comes() -> None:
    pipeline, text = Pipeline(), (7, 8)
    awaited, starved = list[bool](), list[bool]()
    for _ in range(TRIES + 1):
        pipeline.resolve(1, text)
        starved.append(pipeline.starves(1))
        pipeline.begin(1, 0, ORDER)
        awaited.append(pipeline.awaits(1))
        text = (*text, 1)
    assert awaited == [True, *[False] * (TRIES - 1), True]
    assert starved == [False, False, *[True] * (TRIES - 1)]
    pipeline.take([branch(1, text, (4,))])
    pipeline.resolve(1, text)
    pipeline.begin(1, 0, ORDER)
    assert pipeline.awaits(1)
    assert not pipeline.starves(1)


def test_a_round_that_orders_nothing_is_no_order_in_vain() -> None:
    pipeline, text = Pipeline(), (7, 8)
    for _ in range(3):
        pipeline.resolve(1, text)
        pipeline.begin(1, 0, None)
        text = (*text, 1)
    assert not pipeline.starves(1)


def test_a_part_that_is_no_longer_than_what_was_at_hand_has_come_all_the_same() -> None:
    pipeline = half_verified()
    pipeline.take([replace(branch(1, (7, 8, 1, 2, 3), (4,)), goes_on=True)])
    assert not pipeline.awaits(1)


def test_losers_are_dropped_with_the_outcome_and_a_sequence_that_left_takes_nothing() -> None:
    pipeline = in_flight()
    pipeline.take([branch(1, (7, 8, token), (4,)) for token in range(5)])
    assert num_kept(pipeline) == 5
    assert pipeline.resolve(1, (7, 8, 2)) is not None
    assert num_kept(pipeline) == 0
    pipeline.keep([2])
    pipeline.take([branch(1, (7, 8, 2, 3), (4,))])
    assert num_kept(pipeline) == 0
