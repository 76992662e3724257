"""How much of the pool one sequence, one target and one pass may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """max_rows: sequences open at a time; rows_of_one: those of one target, None: all. idle_s, ttl_s: seconds since the
    last use after which a sequence may be evicted, and is forgotten.

    pass_rows: rows of one pass. prefill_tokens: positions of contexts that one pass runs. beside_tokens: the same for
    contexts that nobody waits for, beside drafts that a target waits for; drafters/pace.py allows fewer if they are
    expensive. max_ride: missing positions that ride along in a row that drafts; more are prefill. ahead: tokens that a
    row drafts in one pass; messages that come meanwhile wait for its end. branch_ahead: the same for rows that are
    drafted ahead, the lead and a few behind it. branch_ms: how long a pass may take that has only such rows.
    """

    max_rows: int = 64
    rows_of_one: int | None = None
    pass_rows: int = 128
    prefill_tokens: int = 256
    beside_tokens: int = 32
    max_ride: int = 32
    ahead: int = 8
    branch_ahead: int = 5
    branch_ms: float = 10.0
    idle_s: float = 2.0
    ttl_s: float = 60.0
