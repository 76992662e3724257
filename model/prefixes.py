"""Names for beginnings of texts: one key a full page, of all tokens up to its end.

Two sequences with the same key hold the same KV there, so one may adopt the other's page (model/pages.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

KEY_BYTES = 32  # of a hash that nobody can find two texts for


def page_keys(known: Sequence[bytes], tokens: Sequence[int], page_size: int) -> list[bytes]:
    """The keys of all full pages of these tokens. known: those of its first pages."""
    keys = list(known)
    for start in range(len(keys) * page_size, len(tokens) // page_size * page_size, page_size):
        own = np.asarray(tokens[start : start + page_size], np.int64).tobytes()
        keys.append(blake2b((keys[-1] if keys else b"") + own, digest_size=KEY_BYTES).digest())
    return keys
