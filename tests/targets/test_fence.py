"""A part that fails rests and comes back, and nothing of what it raises gets past its fence."""

import logging

import pytest

from targets.fence import FIRST, FORGIVEN, LONGEST, Fence, Fences


class Rounds:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def rounds() -> Rounds:
    return Rounds()


def fail(fence: Fence) -> None:
    with fence:
        raise ValueError("no such exit")


def rested(fence: Fence, rounds: Rounds) -> int:
    """Rounds until it is open again."""
    before = rounds.now
    while not fence.open:
        rounds.now += 1
    return rounds.now - before


def test_what_goes_well_changes_nothing(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    fence = Fence("policy", rounds)
    with fence:
        reached = True
    assert (reached, fence.open, fence.num_failures, caplog.records) == (True, True, 0, [])


def test_a_part_that_keeps_failing_rests_longer_each_time_and_is_never_given_up(rounds: Rounds) -> None:
    fence = Fence("policy", rounds)
    rests = []
    for _ in range(10):
        fail(fence)
        assert not fence.open
        rests.append(rested(fence, rounds))
    assert rests[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert rests[-1] == LONGEST
    assert fence.num_failures == 10


def test_the_log_has_one_traceback_however_often_it_fails(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    fence = Fence("policy", rounds)
    for _ in range(5):
        fail(fence)
        rested(fence, rounds)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the policy failed" in record.message
    assert "no such exit" in caplog.text
    assert "Traceback" in caplog.text


def test_after_many_good_rounds_patience_and_log_begin_anew(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    fence = Fence("policy", rounds)
    for _ in range(4):
        fail(fence)
        rested(fence, rounds)
    rounds.now += FORGIVEN
    fail(fence)
    assert rested(fence, rounds) == FIRST
    assert len(caplog.records) == 2


def test_a_failure_while_it_rests_makes_the_rest_no_longer(rounds: Rounds) -> None:
    fence = Fence("draft pool", rounds)
    fail(fence)
    rounds.now += FIRST - 1
    fail(fence)
    assert rested(fence, rounds) == 1


def test_an_interrupt_is_no_failure_of_the_part(rounds: Rounds) -> None:
    fence = Fence("policy", rounds)
    with pytest.raises(KeyboardInterrupt), fence:
        raise KeyboardInterrupt
    assert fence.open


def test_fences_of_one_loop_open_each_by_itself_and_count_together(rounds: Rounds) -> None:
    fences = Fences(rounds)
    one, other = fences.around("policy"), fences.around("draft pool")
    fail(one)
    assert (one.open, other.open, fences.num_failures) == (False, True, 1)
