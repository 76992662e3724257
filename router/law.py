"""What overlap may gain: the latency law of drafting while verifying, for a hit rate (Mirror-SD section 3.4).

    in turn    verify + draft + link + rest
    mirror     max(verify, link + draft ahead) + (1 - hits) (draft + link) + rest

Drafting ahead begins with the pass and not half way, so all of it can hide. Rest is what a target does between passes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Law:
    """Milliseconds of a round; wait: for a draft, its link included. hits: share of windows that were at hand.

    ahead_ms: that drafting ahead takes, its link included, where that is not the wait for one draft.
    """

    verify_ms: float
    wait_ms: float
    rest_ms: float
    hits: float
    ahead_ms: float | None = None

    @property
    def in_turn_ms(self) -> float:
        return self.verify_ms + self.wait_ms + self.rest_ms

    @property
    def mirror_ms(self) -> float:
        ahead_ms = self.wait_ms if self.ahead_ms is None else self.ahead_ms
        return max(self.verify_ms, ahead_ms) + (1 - self.hits) * self.wait_ms + self.rest_ms

    @property
    def speedup(self) -> float:
        """Of mirror over drafting in turn, tokens of a round being the same."""
        return self.in_turn_ms / self.mirror_ms
