"""Games of faults: a sample is won, and faults that are planted are found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from drafters.cached_tokens import CachedTokens
from drafters.picks import Pick
from model.pages import PageLedger
from protocol.branch import prefix_hash
from protocol.limits import MessageLimits
from protocol.wire import TargetMessage, decode_target
from targets import pipeline
from targets.proposals import Proposal
from tests.simulation.faults import game, lost

SAMPLE = 60


def test_texts_are_those_of_the_plain_loop_and_nothing_is_left_whatever_the_network_does() -> None:
    assert list(lost(range(SAMPLE))) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_so_are_they_in_two_thousand_games() -> None:
    assert list(lost(range(SAMPLE, 2000))) == []


def test_games_are_about_something() -> None:
    """Drafts are accepted and refused, branches hit, rounds ask in vain, links end, sequences are preempted."""
    records, num_links = [], 0
    for seed in range(30):
        simulation = game(seed).simulation()
        simulation.run()
        records += [record for target in simulation.targets for record in target.records]
        num_links += simulation.network.num_opened
    rows = [row for record in records for row in record.rows if row.num_proposed]
    assert 200 < sum(row.num_accepted for row in rows) < sum(row.num_proposed for row in rows) - 200
    assert sum(not record.answered for record in records) > 30
    assert num_links > 50


class Unreturned(PageLedger):
    """Forgets to give back what a rejection frees."""

    def truncate(self, sequence: int, length: int) -> int:
        held = list(self._tables[sequence].pages)
        length = super().truncate(sequence, length)
        for page in held[len(self._tables[sequence].pages) :]:
            self._references[page] += 1
        return length


def test_a_ledger_that_keeps_what_a_rejection_frees_is_found() -> None:
    assert next(lost(range(200), Unreturned))[1].startswith("the books")


def test_a_draft_that_stays_behind_another_outcome_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool goes on from its own drafts as if the target had agreed with all of them."""
    agreed = CachedTokens.drafted

    def careless(self: CachedTokens, start: int, truth: Sequence[int]) -> list[Pick]:
        picks = list(self.picks.values())
        return agreed(self, start, truth) or picks[len(truth) :]

    monkeypatch.setattr(CachedTokens, "drafted", careless)
    assert next(lost(range(200)))[1]


def test_a_pool_that_takes_a_hostile_target_for_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is about the sequences of whoever sent the one before."""
    honest = ["nobody"]

    def careless(data: bytes, owner: str, limits: MessageLimits) -> TargetMessage:
        if not owner.startswith("hostile"):
            honest.append(owner)
        return decode_target(data, honest[-1], limits)

    monkeypatch.setattr("simulation.pool.decode_target", careless)
    assert next(lost(seed for seed in range(200) if game(seed).hostile_s))[1]


def test_a_branch_key_that_ignores_the_last_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(self: pipeline.Pipeline, sequence_id: int, tokens: Sequence[int]) -> Proposal | None:
        flight = self._flights.setdefault(sequence_id, pipeline._Flight())
        flight.length, flight.hash = len(tokens), prefix_hash(tokens)
        flight.found = flight.branches.get((len(tokens), prefix_hash(tokens[:-1])))
        flight.branches.clear()
        flight.order = None
        return flight.found

    monkeypatch.setattr(pipeline.Pipeline, "resolve", resolve)
    monkeypatch.setattr("drafters.branches.prefix_hash", lambda path, trunk: prefix_hash(path[:-1], trunk))
    assert "an outcome that did not happen" in next(lost(range(200)))[1]
