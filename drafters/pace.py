"""How long passes took lately, and how much of a context a pass may read before it delays a draft."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

NEW = 0.2  # the weight of a new pass in a mean
# Reading contexts may lengthen a draft by this share when as many rows wait for a context as draft. With one waiting
# beside seven it is 7 %.
SHARE = 0.5
LULL_S = 0.25  # without a draft; then the rows that drafted last are not waited for


@dataclass(frozen=True, slots=True)
class Pace:
    """token_ms: time of a pass for each token that it drafts for a row; 0: not known. position_ms: what each position
    of a context adds. Both are running means. drafted_s: when the last draft ended. num_drafting: its rows.
    """

    token_ms: float = 0.0
    position_ms: float = 0.0
    drafted_s: float = -math.inf
    num_drafting: int = 1

    def after(self, pass_ms: float, num_tokens: int, num_positions: int, now: float, num_drafting: int = 1) -> Pace:
        """num_tokens: of the longest draft in the pass. num_positions: of contexts."""
        if num_tokens:
            return replace(self, drafted_s=now, num_drafting=num_drafting)._timed(pass_ms, num_tokens, num_positions)
        return self._timed(pass_ms, num_tokens, num_positions)

    def _timed(self, pass_ms: float, num_tokens: int, num_positions: int) -> Pace:
        if num_positions:
            added_ms = max(pass_ms - max(num_tokens, 1) * self.token_ms, 0.0) / num_positions
            position_ms = self.position_ms + (NEW if self.position_ms else 1.0) * (added_ms - self.position_ms)
            return replace(self, position_ms=position_ms)
        if num_tokens:
            token_ms = self.token_ms + (NEW if self.token_ms else 1.0) * (pass_ms / num_tokens - self.token_ms)
            return replace(self, token_ms=token_ms)
        return self

    def is_lull(self, now: float) -> bool:
        """Whether no draft is likely to come soon."""
        return now - self.drafted_s > LULL_S

    def spare_positions(self, draft_tokens: int, limit: int, num_waiting: int, num_drafting: int) -> int:
        """How many positions of contexts may delay a draft of so many tokens; at least one.

        num_waiting, num_drafting: rows whose contexts are to be read, and rows that are delayed.
        """
        share = SHARE * num_waiting / num_drafting
        allowed_ms = share * draft_tokens * self.token_ms if self.token_ms else math.inf
        return limit if allowed_ms >= limit * self.position_ms else max(int(allowed_ms / self.position_ms), 1)


UNKNOWN = Pace()
