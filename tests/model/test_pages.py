"""The page ledger loses no slot and gives none twice, whatever the schedule."""

import random

import pytest

from model.pages import PageLedger
from tests.reference.pages import DictLedger

SEEDS = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_schedules_leave_every_position_with_what_was_written_there(seed):
    """Draft, accept, reject, fork and free at random; each write goes to a slot, each read must find it again."""
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4, 16])
    ledger, reference = PageLedger(rng.randint(4, 24), page_size), DictLedger()
    memory: dict[int, int] = {}
    next_sequence = stamp = 0
    for _ in range(60):
        known = list(ledger.sequences)
        action = rng.choice(["open", "extend", "extend", "extend", "reject", "fork", "free"])
        if action == "open" or not known:
            ledger.open(next_sequence)
            reference.open(next_sequence)
            next_sequence += 1
            continue
        sequence = rng.choice(known)
        length = reference.length(sequence)
        if action == "extend":
            longer = length + rng.randint(1, 6)
            expected = -(-(longer - ledger.capacity(sequence)) // page_size) <= ledger.num_free
            assert ledger.reserve(sequence, longer) is expected
            for position in range(length, longer if expected else length):
                stamp += 1
                memory[int(ledger.slots(sequence)[position])] = stamp
                reference.write(sequence, position, stamp)
        elif action == "reject":
            shorter = rng.randint(reference.trunk_length(sequence), length)
            ledger.truncate(sequence, shorter)
            reference.truncate(sequence, shorter)
        elif action == "fork":
            at = rng.randint(0, length)
            ledger.fork(sequence, next_sequence, at)
            reference.fork(sequence, next_sequence, at)
            next_sequence += 1
        elif action == "free":
            ledger.free(sequence)
            reference.free(sequence)
        ledger.check()
        for other in ledger.sequences:
            values = [memory[int(slot)] for slot in ledger.slots(other)[: reference.length(other)]]
            assert values == reference.read(other)
    for sequence in ledger.sequences:
        ledger.free(sequence)
    assert ledger.num_free == ledger.num_pages


def test_a_trunk_may_be_freed_before_its_branches():
    ledger = PageLedger(4, 4)
    ledger.open(1)
    ledger.reserve(1, 6)
    ledger.fork(1, 2, 6)
    ledger.free(1)
    ledger.check()
    assert ledger.num_free == 2
    ledger.free(2)
    assert ledger.num_free == 4


def test_a_branch_owns_only_its_tail_and_writes_nothing_of_its_trunk():
    ledger = PageLedger(8, 4)
    ledger.open(1)
    ledger.reserve(1, 8)
    ledger.fork(1, 2, 6)
    ledger.reserve(2, 9)
    assert ledger.slots(2)[:6].tolist() == ledger.slots(1)[:6].tolist()
    assert not set(ledger.slots(2)[6:9]) & set(ledger.slots(1))
    assert ledger.num_free == 8 - 2 - 1


def test_reserving_more_than_there_is_changes_nothing():
    ledger = PageLedger(2, 4)
    ledger.open(1)
    assert ledger.reserve(1, 9) is False
    assert ledger.num_free == 2
    assert ledger.reserve(1, 8) is True


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 4), (4, 0)])
def test_a_ledger_without_pages_is_refused(num_pages, page_size):
    with pytest.raises(ValueError, match="at least 1"):
        PageLedger(num_pages, page_size)


def test_a_leaked_page_is_noticed():
    ledger = PageLedger(4, 4)
    ledger.open(1)
    ledger.reserve(1, 4)
    ledger._tables.clear()
    with pytest.raises(AssertionError, match="reference counts"):
        ledger.check()
