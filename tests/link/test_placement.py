"""Where a sequence is drafted for: evenly, and where it was before unless it has to go."""

from __future__ import annotations

from collections import Counter

import pytest

from link.placement import MOVES_AFTER, SequencePlacement, ranked

REPLICAS = ("pool-0", "pool-1", "pool-2", "pool-3")


def homes(placement: SequencePlacement, replicas: tuple[str, ...], num_sequences: int = 2000) -> list[str | None]:
    return [placement.home(number, replicas) for number in range(num_sequences)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_sequences_of_a_target_are_spread_over_all_replicas(count: int) -> None:
    shares = Counter(homes(SequencePlacement("t"), REPLICAS[:count]))
    assert len(shares) == count
    assert max(shares.values()) < 1.1 * 2000 / count


def test_two_targets_do_not_put_their_first_sequence_on_the_same_replica() -> None:
    assert len({SequencePlacement(f"target-{number}").home(1, REPLICAS) for number in range(20)}) == len(REPLICAS)


def test_a_replica_that_goes_moves_its_own_sequences_only_and_spreads_them() -> None:
    placement = SequencePlacement("t")
    before, after = homes(placement, REPLICAS), homes(placement, REPLICAS[1:])
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(moved) == before.count("pool-0")
    assert set(moved) == set(REPLICAS[1:])


def test_a_new_replica_gets_new_sequences_and_no_old_one() -> None:
    placement = SequencePlacement("t")
    before = homes(placement, REPLICAS[:3], 100)
    assert homes(placement, REPLICAS, 100) == before
    assert "pool-3" in [placement.home(number, REPLICAS) for number in range(100, 200)]


def test_a_sequence_that_is_refused_again_and_again_tries_every_replica_in_its_own_order() -> None:
    placement, tried = SequencePlacement("t"), []
    for _ in range(5 * MOVES_AFTER):
        tried.append(placement.home(7, REPLICAS))
        placement.refused(7, REPLICAS)
    order = ranked("t", 7, REPLICAS)
    assert tried[::MOVES_AFTER] == [*order, order[0]]


def test_one_refusal_between_drafts_moves_nothing() -> None:
    placement = SequencePlacement("t")
    first = placement.home(7, REPLICAS)
    for _ in range(20):
        placement.refused(7, REPLICAS)
        placement.served(7)
        assert placement.home(7, REPLICAS) == first


def test_with_one_replica_a_refused_sequence_stays() -> None:
    placement = SequencePlacement("t")
    for _ in range(5):
        assert placement.home(7, REPLICAS[:1]) == "pool-0"
        placement.refused(7, REPLICAS[:1])


def test_without_a_replica_there_is_no_place_and_what_is_closed_is_forgotten() -> None:
    placement = SequencePlacement("t")
    assert placement.home(1, ()) is None
    placement.home(1, REPLICAS)
    placement.forget([1, 2])
    assert not any(placement.is_at(1, replica) for replica in REPLICAS)
