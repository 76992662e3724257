from __future__ import annotations

from router.trials import Retries, Trials


def rest(trials: Trials, num_rounds: int) -> None:
    for _ in range(num_rounds):
        trials.pass_round([])


def rounds_until_due(trials: Trials, sequence_ids: list[int]) -> int:
    for number in range(100_000):
        if trials.due(sequence_ids):
            return number
        rest(trials, 1)
    raise AssertionError("never due")


def fail(trials: Trials) -> None:
    trials.decide(drafts=True, hopes=True)
    trials.pass_round([0, 1])
    trials.decide(drafts=False, hopes=False)


def test_plain_decoding_is_left_once_patience_ends() -> None:
    trials = Trials(patience=100)
    trials.pass_round([0, 1])
    assert rounds_until_due(trials, [1, 2]) == 100


def test_other_sequences_are_tried_sooner() -> None:
    trials = Trials(patience=128, sooner=8)
    trials.pass_round([0, 1])
    assert rounds_until_due(trials, [2, 3]) == 16
    trials.forget()
    trials.pass_round([])
    assert trials.due([0, 1])  # the names, not the sequences, are the same


def test_every_trial_in_vain_doubles_the_patience_up_to_a_bound() -> None:
    trials = Trials(patience=10, doublings=3)
    waits = []
    for _ in range(6):
        fail(trials)
        waits.append(rounds_until_due(trials, [0]))
    assert waits == [20, 40, 80, 80, 80, 80]


def test_drafting_on_the_evidence_gives_the_patience_back() -> None:
    trials = Trials(patience=10)
    fail(trials)
    trials.decide(drafts=True, hopes=True)
    trials.pass_round([0])
    assert trials.trying
    trials.decide(drafts=True, hopes=False)
    assert not trials.trying
    assert rounds_until_due(trials, [0]) == 10


def test_a_rule_is_retried_rarer_with_every_time_in_vain_and_soon_after_one_that_was_not() -> None:
    retries, gaps = Retries(patience=4, doublings=3), []
    for _ in range(5):
        gaps.append(next(number for number in range(1, 100) if retries.due(0)))
        retries.begin(1)
    assert gaps == [5, 9, 17, 33, 33]
    assert not retries.due(1)
    assert next(number for number in range(2, 100) if retries.due(1)) == 5
