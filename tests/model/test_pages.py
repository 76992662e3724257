"""The page ledger loses no slot and gives none twice, whatever the schedule."""

import random

import pytest

from model.pages import PageLedger
from tests.reference.pages import DictLedger

SEEDS = range(200)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_schedules_leave_every_position_with_what_was_written_there(seed):
    """Draft, accept, reject and free at random; each write goes to a slot, each read must find it again."""
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4, 16])
    ledger, reference = PageLedger(rng.randint(4, 24), page_size), DictLedger()
    memory: dict[int, int] = {}
    next_sequence = stamp = 0
    for _ in range(60):
        known = list(ledger.sequences)
        action = rng.choice(["open", "extend", "extend", "extend", "reject", "free"])
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
            shorter = rng.randint(0, length)
            ledger.truncate(sequence, shorter)
            reference.truncate(sequence, shorter)
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


@pytest.mark.parametrize("seed", SEEDS)
def test_beginnings_are_found_again_with_what_was_written_there_until_their_pages_are_taken(seed):
    """Sequences over few texts; what is full is kept, and each new one adopts what is there and writes the rest."""
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4])
    ledger = PageLedger(rng.randint(8, 20), page_size)
    texts = [[rng.randrange(3) for _ in range(4 * page_size)] for _ in range(4)]
    memory: dict[int, tuple[int, ...]] = {}
    held: dict[int, list[int]] = {}
    num_adopted = 0
    for number in range(80):
        if held and rng.random() < 0.5:
            gone = rng.choice(list(held))
            ledger.free(gone)
            del held[gone]
        text = rng.choice(texts)[: rng.randint(1, 4 * page_size)]
        keys = [repr(text[: end + page_size]).encode() for end in range(0, len(text) - page_size + 1, page_size)]
        ledger.open(number)
        known = ledger.adopt(number, 0, keys) * page_size
        num_adopted += known
        if not ledger.reserve(number, len(text)):
            ledger.free(number)
            continue
        held[number] = text
        for position in range(known, len(text)):
            memory[int(ledger.slots(number)[position])] = tuple(text[: position + 1])
        for index in range(known // page_size, len(text) // page_size):
            ledger.keep(number, index, keys[index])
        ledger.check()
        for other, own in held.items():
            slots = ledger.slots(other)[: len(own)]
            assert [memory[int(slot)] for slot in slots] == [tuple(own[: at + 1]) for at in range(len(own))]
    assert num_adopted > 0
    for number in held:
        ledger.free(number)
    assert ledger.num_free == ledger.num_pages


def test_a_page_of_ones_own_gives_way_to_a_kept_one():
    ledger = PageLedger(4, 4)
    for sequence in (1, 2):
        ledger.open(sequence)
        ledger.reserve(sequence, 8)
    ledger.keep(1, 0, b"the same")
    assert ledger.adopt(2, 0, [b"the same", b"another"]) == 1
    assert ledger.adopt(2, 1, [b"another"]) == 0
    assert ledger.slots(2)[:4].tolist() == ledger.slots(1)[:4].tolist()
    assert ledger.capacity(2) == 8
    assert ledger.num_free == 1
    ledger.check()


def test_a_page_that_is_adopted_again_stays_where_it_is():
    ledger = PageLedger(4, 4)
    ledger.open(1)
    ledger.reserve(1, 8)
    assert ledger.keep(1, 0, b"a") is not None
    slots = ledger.slots(1).tolist()
    assert ledger.adopt(1, 0, [b"a"]) == 1
    assert ledger.slots(1).tolist() == slots
    ledger.check()


def test_the_same_text_in_two_pages_is_kept_once():
    ledger = PageLedger(4, 4)
    for sequence in (1, 2):
        ledger.open(sequence)
        ledger.reserve(sequence, 4)
    (page,) = {ledger.keep(1, 0, b"a"), ledger.keep(1, 0, b"a")}
    assert ledger.kept([b"a", b"ab"]) == [page]
    assert ledger.keep(2, 0, b"a") is None


def test_a_kept_page_that_would_be_cut_is_let_go_whole():
    ledger = PageLedger(4, 4)
    ledger.open(1)
    ledger.reserve(1, 10)
    ledger.keep(1, 0, b"a")
    ledger.keep(1, 1, b"ab")
    assert ledger.truncate(1, 9) == 9
    assert ledger.truncate(1, 8) == 8
    assert ledger.truncate(1, 7) == 4
    assert ledger.capacity(1) == 4
    ledger.open(2)
    assert ledger.adopt(2, 0, [b"a", b"ab"]) == 2, "it is there for others"
    ledger.check()


def test_pages_that_are_shared_are_freed_by_their_last_holder():
    ledger = PageLedger(8, 4)
    for sequence in (1, 2):
        ledger.open(sequence)
        ledger.adopt(sequence, 0, [b"a"])
        ledger.reserve(sequence, 8)
        ledger.keep(sequence, 0, b"a")
    assert ledger.num_held([1, 2]) == 3
    assert [ledger.num_freed(gone) for gone in ([1], [2], [1, 2])] == [1, 1, 3]


def test_of_a_beginning_the_end_is_forgotten_first():
    ledger = PageLedger(3, 4)
    ledger.open(1)
    ledger.reserve(1, 12)
    for index, key in enumerate((b"a", b"ab", b"abc")):
        ledger.keep(1, index, key)
    ledger.free(1)
    ledger.open(2)
    ledger.reserve(2, 4)
    ledger.open(3)
    assert ledger.adopt(3, 0, [b"a", b"ab", b"abc"]) == 2
    ledger.check()


def test_what_is_forgotten_is_free_and_found_by_nobody():
    ledger = PageLedger(4, 4)
    for sequence, key in ((1, b"a"), (2, b"b")):
        ledger.open(sequence)
        ledger.reserve(sequence, 4)
        ledger.keep(sequence, 0, key)
    ledger.free(1)
    ledger.forget()
    ledger.check()
    ledger.open(3)
    assert (ledger.adopt(3, 0, [b"a"]), ledger.adopt(3, 0, [b"b"])) == (0, 0)
    ledger.free(2)
    ledger.check()
    assert ledger.num_free == 4
