"""The acceptance rule: a draft token is accepted iff it equals the target's own pick.

With coupled noise this one rule is exact for greedy and sampled requests alike, and what a round commits is a
prefix of the target's own picks: the accepted ones, which equal the draft, and the bonus behind them.
"""

from __future__ import annotations

from collections.abc import Sequence


def num_accepted(picks: Sequence[int], draft: Sequence[int]) -> int:
    """How many draft tokens the target picks itself.

    picks: len(draft) + 1 tokens; picks[i] is the target's at the place of draft[i], given draft[:i].
    """
    for index, token in enumerate(draft):
        if picks[index] != token:
            return index
    return len(draft)
