"""The acceptance rule: a draft token is accepted iff it equals the target's own pick.

With coupled noise this is exact for greedy and sampled requests alike: what a round commits is a prefix of the target's
own picks, the accepted ones and the bonus behind them.
"""

from __future__ import annotations

from collections.abc import Sequence


def num_accepted(picks: Sequence[int], draft: Sequence[int]) -> int:
    """picks: one more than `draft` has; picks[i] is the target's at the place of draft[i], given draft[:i]."""
    for index, token in enumerate(draft):
        if picks[index] != token:
            return index
    return len(draft)
