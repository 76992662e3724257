"""The noise depends on seed, position and token only, and Philox gives its published vectors."""

import math

import pytest
import torch

from model.noise import gumbel, philox, uniform
from tests.reference.philox import philox4x32, uniform_of

PI = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, words):
    """Known answers of Random123, philox4x32-10."""
    assert philox4x32(counter, key) == words
    got = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, got)) == words


def test_the_committed_vector_of_our_own_layout_stands():
    noise = uniform(torch.tensor([5, -1]), torch.tensor([0, 1023]), 6)
    expected = [[uniform_of(5, 0, v) for v in range(6)], [uniform_of(2**64 - 1, 1023, v) for v in range(6)]]
    assert noise.tolist() == expected
    assert noise[0, :2].tolist() == COMMITTED


COMMITTED = [0.7659821578999981, 0.06970701098907739]


def test_noise_depends_on_nothing_but_seed_position_and_token():
    seeds, positions = torch.tensor([3, 9, 3]), torch.tensor([7, 7, 8])
    together = gumbel(seeds, positions, 50)
    alone = gumbel(seeds[1:2], positions[1:2], 50)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[:, :13], gumbel(seeds, positions, 13))
    assert not torch.equal(together[0], together[2])


def test_the_smallest_and_the_largest_word_stay_inside_the_open_interval():
    low, high = 0.5 * 2.0**-32, (2**32 - 0.5) * 2.0**-32
    assert 0 < low < high < 1
    assert math.isfinite(-math.log(-math.log(low)))
    assert -math.log(-math.log(high)) == pytest.approx(22.9, abs=0.1)
    next_highest = (2**32 - 1.5) * 2.0**-32
    assert -math.log(-math.log(high)) > -math.log(-math.log(next_highest)) + 0.5


def test_the_noise_is_uniform_over_a_large_vocabulary():
    noise = uniform(torch.tensor([1]), torch.tensor([2]), 200_000)[0]
    counts = torch.histc(noise, bins=100, min=0, max=1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 150  # 99 degrees of freedom: p = 0.0007
