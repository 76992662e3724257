"""A part that fails rests and comes back, and nothing of what it raises gets past its fence."""

import logging

import pytest

from targets.fence import FIRST, LONGEST, Fence


class Part:
    """Behind a fence whose rounds pass by hand."""

    def __init__(self) -> None:
        self.now = self.num_asked = 0
        self.fence = Fence("policy", lambda: self.now)

    def fail(self, always: bool = False) -> str:
        return self.fence.attempt(self._fail, "otherwise", always=always)

    def _fail(self) -> str:
        self.num_asked += 1
        raise ValueError("no such exit")

    def rested(self) -> int:
        """Rounds until it is asked again."""
        before = self.now
        while not self.fence.open:
            self.now += 1
        return self.now - before


@pytest.fixture
def part() -> Part:
    return Part()


def test_what_goes_well_goes_through(part: Part, caplog: pytest.LogCaptureFixture) -> None:
    assert part.fence.attempt(lambda: "answer", "otherwise") == "answer"
    assert (part.fence.open, part.fence.num_failures, caplog.records) == (True, 0, [])


def test_a_part_that_keeps_failing_rests_longer_each_time_and_is_never_given_up(part: Part) -> None:
    rests = []
    for _ in range(10):
        assert part.fail() == "otherwise"
        rests.append(part.rested())
    assert rests[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert rests[-1] == LONGEST
    assert part.fence.num_failures == 10


def test_the_log_has_few_tracebacks_however_often_it_fails(part: Part, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(9):
        part.fail()
        part.rested()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4  # the 1st, 2nd, 4th and 8th
    assert "the policy failed" in caplog.records[0].message
    assert "Traceback" in caplog.text


def test_while_it_rests_it_is_asked_only_for_what_must_be_and_its_rest_gets_no_longer(part: Part) -> None:
    part.fail()
    part.now += FIRST - 1
    assert (part.fail(), part.num_asked) == ("otherwise", 1)
    assert (part.fail(always=True), part.num_asked) == ("otherwise", 2)
    assert part.rested() == 1


def test_an_interrupt_is_no_failure_of_the_part(part: Part) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.fence.attempt(interrupt, None)
    assert part.fence.open
