"""What passes took lately, and so how much of a context a pass can read before a draft has to wait for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

NEW = 0.2  # the weight of a new pass in a mean
SHARE = 0.07  # of the time of a draft, by which contexts may hold up a draft
LULL_S = 0.25  # without a draft, after which contexts are read as fast as they can be


@dataclass(frozen=True, slots=True)
class Pace:
    """token_ms: of a pass, for each token that it drafts for a row; 0: not known. position_ms: what each position of a
    context adds to a pass. drafted_s: when the last draft ended. Running means.
    """

    token_ms: float = 0.0
    position_ms: float = 0.0
    drafted_s: float = -math.inf

    def after(self, pass_ms: float, num_tokens: int, num_positions: int, now: float) -> Pace:
        """num_tokens: of the longest draft in the pass. num_positions: of contexts."""
        drafted_s = now if num_tokens else self.drafted_s
        if num_positions:
            added_ms = max(pass_ms - max(num_tokens, 1) * self.token_ms, 0.0) / num_positions
            position_ms = self.position_ms + (NEW if self.position_ms else 1.0) * (added_ms - self.position_ms)
            return replace(self, position_ms=position_ms, drafted_s=drafted_s)
        if num_tokens:
            token_ms = self.token_ms + (NEW if self.token_ms else 1.0) * (pass_ms / num_tokens - self.token_ms)
            return Pace(token_ms, self.position_ms, drafted_s)
        return self

    def is_lull(self, now: float) -> bool:
        """Whether no draft is likely to come soon."""
        return now - self.drafted_s > LULL_S

    def spare_positions(self, draft_tokens: int, limit: int) -> int:
        """Positions of contexts that hold up a draft of so many tokens by no more than SHARE; at least one."""
        allowed_ms = SHARE * draft_tokens * self.token_ms if self.token_ms else math.inf
        return limit if allowed_ms >= limit * self.position_ms else max(int(allowed_ms / self.position_ms), 1)


UNKNOWN = Pace()
