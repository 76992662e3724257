"""Watermarks against a step-by-step reference: what they say exists must be there, and be right."""

from __future__ import annotations

import random

import pytest

from drafters.depth import Watermarks
from model.pages import PageLedger
from tests.reference.depth import StepByStep, from_scratch, leave


class LazyStack:
    """Sequences over one ledger, driven by watermarks alone; memory keeps its stale values, as tensors do."""

    def __init__(self, num_segments: int, page_size: int) -> None:
        self.num_segments = num_segments
        self.ledger = PageLedger(400 // page_size + 40, page_size)
        self.marks: dict[int, Watermarks] = {}
        self.references: dict[int, StepByStep] = {}
        self.entries: dict[tuple[int, int], int] = {}
        self.hidden: dict[tuple[int, int], int] = {}
        self.num_opened = 0

    def open(self) -> int:
        self.num_opened += 1
        self.ledger.open(self.num_opened)
        self.marks[self.num_opened] = Watermarks.none(self.num_segments)
        self.references[self.num_opened] = StepByStep()
        return self.num_opened

    def append(self, sequence: int, tokens: list[int]) -> None:
        self.references[sequence].tokens += tokens
        assert self.ledger.reserve(sequence, len(self.references[sequence].tokens))

    def run(self, sequence: int, segment: int, length: int) -> None:
        marks, reference, slots = self.marks[sequence], self.references[sequence], self.ledger.slots(sequence)
        missing = marks.missing(segment, length)
        assert list(missing) == reference.missing(segment, length), "computed twice, or not at all"
        for position in missing:
            slot = int(slots[position])
            above = self.hidden[segment - 1, slot] if segment else reference.tokens[position]
            self.entries[segment, slot] = above
            seen = [self.entries[segment, int(slots[earlier])] for earlier in range(position + 1)]
            self.hidden[segment, slot] = leave(segment, seen)
        reference.run(segment, length)
        self.marks[sequence] = marks.advance(segment, missing.stop)

    def reject(self, sequence: int, length: int) -> None:
        self.marks[sequence] = self.marks[sequence].truncate(length)
        self.ledger.truncate(sequence, length)
        self.references[sequence].reject(length)

    def free(self, sequence: int) -> None:
        self.ledger.free(sequence)
        del self.marks[sequence], self.references[sequence]

    def check(self) -> None:
        self.ledger.check()
        for sequence, marks in self.marks.items():
            marks.check()
            reference, slots = self.references[sequence], self.ledger.slots(sequence)
            entries, hidden = from_scratch(reference.tokens, self.num_segments)
            done = {(segment, position) for segment, mark in enumerate(marks.marks) for position in range(mark)}
            assert done == reference.done
            for segment, position in done:
                assert self.entries[segment, int(slots[position])] == entries[segment][position]
            for segment in range(self.num_segments - 1):
                for position in marks.missing(segment + 1, marks.marks[segment]):
                    assert self.hidden[segment, int(slots[position])] == hidden[segment][position]


class Schedule:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.stack = LazyStack(self.rng.randint(1, 4), self.rng.choice([1, 2, 4, 16]))

    def play(self, num_actions: int) -> None:
        for _ in range(num_actions):
            known = list(self.stack.marks)
            if not known:
                self.act_open()
                continue
            actions = [self.act_draft] * 4 + [self.act_settle, self.act_verify, self.act_verify, self.act_open_another]
            action = self.rng.choice([*actions, self.act_free] if len(known) > 1 else actions)
            action(self.rng.choice(known))
            self.stack.check()

    def act_open(self) -> None:
        self.stack.append(self.stack.open(), self.tokens(self.rng.randint(1, 9)))

    def act_draft(self, sequence: int) -> None:
        """A token at a random depth: every segment above it runs what it lacks, and the token is appended."""
        tokens = self.stack.references[sequence].tokens
        if len(tokens) > 24:
            return self.act_verify(sequence)
        for segment in range(self.rng.randint(1, self.stack.num_segments)):
            self.stack.run(sequence, segment, len(tokens))
        self.stack.append(sequence, self.tokens(1))
        return None

    def act_settle(self, sequence: int) -> None:
        """A chunk of the known tokens goes through to a random depth."""
        length = self.rng.randint(0, len(self.stack.references[sequence].tokens))
        for segment in range(self.rng.randint(1, self.stack.num_segments)):
            self.stack.run(sequence, segment, max(length, self.stack.marks[sequence].marks[segment]))

    def act_verify(self, sequence: int) -> None:
        """Accept a part of the tokens, reject the rest, and append what the target committed."""
        tokens = self.stack.references[sequence].tokens
        self.stack.reject(sequence, self.rng.randint(0, len(tokens)))
        self.stack.append(sequence, self.tokens(self.rng.randint(1, 3)))

    def act_open_another(self, _: int) -> None:
        if len(self.stack.marks) < 4:
            self.act_open()

    def act_free(self, sequence: int) -> None:
        self.stack.free(sequence)

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randint(0, 3) for _ in range(count)]


@pytest.mark.parametrize("first_seed", range(0, 240, 20))
def test_random_schedules_compute_nothing_twice_and_never_read_what_is_stale(first_seed: int) -> None:
    """Draft, accept, reject, settle and change depth at random, twenty schedules a case."""
    for seed in range(first_seed, first_seed + 20):
        schedule = Schedule(seed)
        schedule.play(40)


def test_tokens_that_left_early_ride_along_in_the_next_deeper_pass() -> None:
    marks = Watermarks((10, 6, 6))
    assert marks.missing(0, 11) == range(10, 11)
    deeper = marks.advance(0, 11)
    assert deeper.missing(1, 11) == range(6, 11)
    assert deeper.advance(1, 11).marks == (11, 11, 6)


def test_a_rejection_cuts_only_the_segments_that_are_beyond_it() -> None:
    assert Watermarks((10, 6, 2)).truncate(7).marks == (7, 6, 2)
    assert Watermarks((10, 6, 2)).truncate(4).marks == (4, 4, 2)


def test_a_segment_cannot_run_ahead_of_the_one_above_it() -> None:
    with pytest.raises(AssertionError, match="ahead"):
        Watermarks((10, 6)).advance(1, 11)


def test_the_schedules_meet_every_kind_of_lag() -> None:
    """The reference would prove nothing if no schedule ever left a deeper segment behind or rode along."""
    lags = set()
    for seed in range(20):
        schedule = Schedule(seed)
        schedule.play(40)
        lags |= {
            mark - deeper
            for one in schedule.stack.marks.values()
            for mark, deeper in zip(one.marks, one.marks[1:], strict=False)
        }
    assert {0, 1, 2, 3} <= lags
