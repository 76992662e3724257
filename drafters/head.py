"""Trimmed heads: rows of an LM head for the tokens that targets really write (VocabTrim, Goel et al. 2025)."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def count_tokens(tokens: Sequence[int] | NDArray[np.uint32], vocab_size: int) -> Counts:
    """How often each token id occurs, [vocab_size]."""
    return np.bincount(np.asarray(tokens, np.int64), minlength=vocab_size)


def most_frequent(counts: Counts, size: int, always: Iterable[int]) -> tuple[int, ...]:
    """`size` token ids, ascending: those in `always`, then the most frequent, of equal ones the smaller id."""
    kept = dict.fromkeys(always)
    for token in np.argsort(-counts, kind="stable").tolist():
        if len(kept) >= size:
            break
        kept.setdefault(token)
    return tuple(sorted(kept))


def coverage(counts: Counts, head: Sequence[int]) -> float:
    """The share of the counted tokens that the head can draft."""
    return float(counts[list(head)].sum() / max(1, counts.sum()))
