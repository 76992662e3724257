"""Counter-based noise: U(seed, position, token) by Philox4x32-10 (Salmon et al., SC 2011), and Gumbel from it.

Every number is a function of its coordinates, so a token's noise is the same in the drafter and the target, in any
batch, after a preemption and on another replica. One Philox block gives the noise of four neighbouring token ids:
counter = (token // 4, position, 0, 0), key = the low and high words of the seed.

U = (word + 1/2) / 2^32 in float64 is never 0 or 1, and resolves the largest values of G (about 22.9). 24-bit floats
would give ties among 128k tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four int64 tensors of 32-bit words from four counter words and two key words, all broadcastable."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """[num_rows, vocab_size] float64 in (0, 1). seeds, positions: [num_rows] int64 (seeds as two's complement)."""
    blocks = torch.arange(-(-vocab_size // 4), dtype=torch.int64, device=seeds.device)
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    key = ((seeds & _WORD)[:, None], ((seeds >> 32) & _WORD)[:, None])
    words = philox((blocks, positions[:, None], zero, zero), key)
    joined = torch.stack(words, dim=-1).reshape(len(seeds), -1)[:, :vocab_size]
    return joined.double().add_(0.5).mul_(2.0**-32)


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """G = -log(-log U), [num_rows, vocab_size] float64."""
    return uniform(seeds, positions, vocab_size).log_().neg_().log_().neg_()


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 x 32 bit product. int64 wraps around, and the masks drop the sign."""
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD
