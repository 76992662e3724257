"""What a simulated replica drafts ahead, pass by pass, and what is left of it; the same as a real one."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from drafters.outcomes import Guess
from protocol.plan import DepthRule
from router.pipeline import Source
from router.simulate_acceptance import Draft, Text, acceptance_table
from router.simulate_ahead import SECOND, AheadRound, Choices, Luck, early_picks, guess_of
from router.simulate_costs import PoolTables
from router.simulate_jobs import RIGHT, WRONG, Decoding, Flight, Job, Outcome, Resident, Round, Window
from router.simulate_pool import Device, Loop, PoolRules, Replica
from tests.router.curves import curves

EXITS = (2, 4, 6)
RULE = DepthRule((2,))
TABLE = acceptance_table(dict.fromkeys(EXITS, (1.0,)))
BASE, TOKEN_MS, LENGTH = 50, 0.1, 5


class Scene:
    """A sequence whose window of so many tokens, of which so many are right, is being verified."""

    def __init__(
        self, num_verified: int, num_right: int, fan_out: int = 8, branch_ahead: int = 2, branch_ms: float = 1e6
    ) -> None:
        self.loop = Loop()
        priced = PoolTables(curves(layer=TOKEN_MS / 2, row=0.0), EXITS)
        rules = PoolRules(ahead=1, branch_ahead=branch_ahead, branch_ms=branch_ms)
        self.pool = Replica(self.loop, Device(self.loop), priced, len(EXITS), rules, lambda: 1.0)
        self.came: list[tuple[float, Outcome, Source | None, int]] = []
        self.sequence = Decoding(0, BASE - 10, 100, Text(100, np.random.default_rng(0)), seed=0)
        self.sequence.generated = 10
        self.resident = self.sequence.held(len(EXITS), BASE)
        self.resident.settled = [BASE + num_verified - 1] * len(EXITS)
        draft = Draft([0] * num_verified, [0.6] * num_verified, num_right)
        right = [at < num_right for at in range(num_verified)] + [num_right == num_verified]
        self.flight = Flight(
            self.sequence,
            BASE,
            10,
            Window(draft, RULE, num_verified, 0, in_place=True),
            num_verified,
            LENGTH,
            0.0,
            fan_out,
            TABLE,
            [Guess(RIGHT if own else WRONG, 0.6, SECOND if own else RIGHT) for own in right],
            lead=Draft([0], [0.6], 1),
            behind=Draft([0] * LENGTH, [1.0] * LENGTH, LENGTH),
        )
        self.round = AheadRound(self.pool, EXITS, [self.flight], count(1), self.arrived)

    def arrived(self, flight: Flight, outcome: Outcome, window: Window) -> None:
        self.came.append((self.loop.now, outcome, window.source, len(window.draft.exits)))

    def told(self) -> dict[Outcome, list[tuple[int, int]]]:
        """Of each branch: steps of the drafter until it came, and tokens."""
        made: dict[Outcome, list[tuple[int, int]]] = {}
        for ms, outcome, _, length in self.came:
            made.setdefault(outcome, []).append((round(ms / TOKEN_MS), length))
        return made


def test_branches_within_the_window_come_with_the_lead_in_parts_and_its_own_second_choice_behind() -> None:
    """The first pass drafts the lead and two tokens behind it, in three steps; each of the others two."""
    scene = Scene(num_verified=3, num_right=3)
    scene.round.begin()
    scene.loop.run()
    inside = [(3, 2), (5, 4), (7, 5)]
    assert scene.told() == {
        (3, RIGHT): inside,
        **{(at, SECOND): inside for at in range(3)},
        (3, SECOND): [(5, 2), (7, 4), (8, 5)],
    }
    assert {source for _, outcome, source, _ in scene.came if outcome == (3, RIGHT)} == {Source.FULL}
    assert scene.pool.num_rows == 4 + 5 + 5 + 1


def test_a_part_counts_as_asked_for_at_its_length_and_the_whole_at_the_window_s() -> None:
    window = Window(Draft([0] * 3, [0.5] * 3, 2), RULE, 5, 0, in_place=False)
    assert [(window.part(n).length, len(window.part(n).draft.exits), window.part(n).draft.run) for n in (1, 2, 3)] == [
        (1, 1, 1),
        (2, 2, 2),
        (5, 3, 2),
    ]


def test_the_next_message_ends_what_is_not_done_and_tells_how_far_the_outcome_s_branch_got() -> None:
    scene = Scene(num_verified=3, num_right=1, branch_ahead=1)
    scene.round.begin()
    known = []
    in_the_third_pass = TOKEN_MS * 3.5
    scene.loop.at(
        in_the_third_pass,
        lambda: scene.pool.tell(lambda: known.append(scene.sequence.end_ahead(scene.pool.close))),
    )
    scene.loop.run()
    assert scene.pool.num_passes == 3
    assert scene.told()[1, RIGHT] == [(2, 1), (3, 2), (4, 3)]
    assert known[0] is not None
    assert (known[0].job.done, known[0].window.in_place, known[0].window.source) == (3, False, Source.RUNNER_UP)


@pytest.mark.parametrize("branch_ahead", [1, 2, 5])
def test_a_full_branch_is_the_sequence_s_own_and_what_is_right_of_it_need_not_be_run_again(branch_ahead: int) -> None:
    scene = Scene(num_verified=3, num_right=3, branch_ahead=branch_ahead)
    scene.round.begin()
    scene.loop.run()
    behind = BASE + 3 + 1 + LENGTH
    assert scene.resident.settled[0] == behind - 1, "all but the last token"
    scene.resident.take_over(behind - 1, None)
    assert scene.resident.settled[0] == behind - 2
    other = Scene(num_verified=3, num_right=1, branch_ahead=branch_ahead)
    other.round.begin()
    other.loop.run()
    other.resident.take_over(BASE + 2, None)
    assert other.resident.settled[0] == BASE + 1, "up to the mistake"


def test_the_window_that_was_a_part_goes_on_from_what_the_replica_has_of_it() -> None:
    """Two of five tokens are verified; the replica has four: the lead, and one behind it, which come at once."""
    scene = Scene(num_verified=3, num_right=3)
    scene.round.begin()
    scene.loop.at(TOKEN_MS * 4.5, lambda: scene.pool.tell(lambda: again.begin()))
    first = scene.flight
    scene.sequence.generated += 4
    window = Window(first.behind.first(2), RULE, 2, 4, True, Source.FULL)
    guesses = [Guess(RIGHT, 0.6, SECOND)] * 3
    second = Flight(scene.sequence, BASE + 4, 14, window, 2, LENGTH, 0.0, 8, TABLE, guesses, first.lead, first.behind)
    again = AheadRound(scene.pool, EXITS, [second], count(100), scene.arrived)
    scene.loop.run()
    steps = [step for step, _ in scene.told()[2, RIGHT]]
    assert second.held == 4
    assert steps[0] == 5 + 3, "a pass with the lead and two tokens, of which it had one"
    assert [length for _, length in scene.told()[2, RIGHT]] == [2, 4, 5]


def test_a_hint_ends_branches_that_are_not_among_the_best_and_begins_those_that_are_missing() -> None:
    scene = Scene(num_verified=2, num_right=1, fan_out=3, branch_ahead=1)
    scene.flight.guesses = [Guess(RIGHT, 0.9, SECOND), Guess(WRONG, 0.9, SECOND)]
    scene.flight.lead = Draft([0], [0.9], 0)
    scene.flight.guesses.append(Guess(WRONG, 0.9, SECOND))
    scene.flight.hint = ((RIGHT,), (RIGHT,), (WRONG,))
    scene.round.begin()
    scene.loop.at(TOKEN_MS * 3.5, lambda: scene.pool.tell(scene.round.hint))
    scene.loop.run()
    late = next(ms for ms, outcome, _, _ in scene.came if outcome == (1, RIGHT))
    assert late == pytest.approx(TOKEN_MS * 5), "begun behind the pass in which the hint came"
    assert next(source for _, outcome, source, _ in scene.came if outcome == (1, RIGHT)) is Source.EARLY_EXIT
    whole = {outcome for outcome, own in scene.told().items() if own[-1][1] == LENGTH}
    assert len(whole) == 3, "one of those begun before was ended"


def test_second_choices_and_early_picks_are_right_as_often_as_they_are_told() -> None:
    choices, luck = Choices(0.4, (0.5, 0.2), agrees=0.8), Luck(20_000, seed=3)
    seconds = [guess_of(choices, luck, at, 0.5, is_right=False).runner_up == RIGHT for at in range(20_000)]
    assert np.mean(seconds) == pytest.approx(0.4, abs=0.015)
    for is_right, expected in ((False, [0.5, 0.2, 0.0]), (True, [0.8, 0.0, 0.0])):
        picks = [early_picks(choices, luck, at, is_right, 3) for at in range(20_000)]
        assert all(len(set(own)) == len(own) == 2 for own in picks)
        ranks = [own.index(RIGHT) if RIGHT in own else None for own in picks]
        assert [ranks.count(rank) / 20_000 for rank in range(3)] == pytest.approx(expected, abs=0.015)
    assert {guess_of(choices, luck, at, 0.5, is_right=True).runner_up for at in range(50)} == {SECOND}


@pytest.mark.parametrize(
    ("branch_ms", "steps"), [(1e6, [5, 7, 8]), (2.9 * TOKEN_MS, [5, 7, 8]), (0.0, [4, 5, 6, 7, 8])]
)
def test_passes_of_branches_whose_lead_is_there_are_short_so_that_the_next_message_need_not_wait(
    branch_ms: float, steps: list[int]
) -> None:
    scene = Scene(num_verified=3, num_right=3, branch_ms=branch_ms)
    other = Job(Round(lambda: None), Resident(len(EXITS), 1), 0, Draft([0] * 30, [0.5] * 30, 0), None)
    scene.pool.submit(other.round, [(99, other)])
    scene.loop.run()  # it has learned what a token takes
    began = round(scene.loop.now / TOKEN_MS)
    scene.round.begin()
    scene.loop.run()
    assert [step - began for step, _ in scene.told()[3, SECOND]] == steps
