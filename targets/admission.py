"""Whether a request may wait: how long its first token would take, from what rounds and answers took lately. Pure.

pace    seconds of a token and of a prompt token, and how often answers end before their limit; a fold over rounds
wait    slots are free when those before have ended; all prompts before its own are read first
room    when it is worth to come again: where a place is free, or the wait is short enough
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappush, heapreplace

from protocol.record import RoundRecord

KEPT = 1 - 1 / 64  # of what earlier rounds, or answers, count for
# Of a limit, that a wait may be expected to take: the rest is for what a guess of the lengths of answers gets wrong.
# Where they stop by chance 0.7 lets 1 to 4 % be late, 0.8 9 to 13 %, 1 up to 25 % (tests/targets/test_admission.py).
SURE_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Pace:
    """Decayed sums. decode_s: of rounds without prompts, in which a row gained row_tokens. prompt_s: what rounds with
    prompts took beyond that, for prompt_tokens. num_ends: answers that ended before their limit, of end_tokens in all;
    the first ones are a guess, which the first answers outweigh.
    """

    decode_s: float = 0.0
    row_tokens: float = 0.0
    prompt_s: float = 0.0
    prompt_tokens: float = 0.0
    num_ends: float = 1.0
    end_tokens: float = 256.0

    @property
    def token_s(self) -> float:
        return self.decode_s / self.row_tokens if self.row_tokens else 0.0

    @property
    def prompt_token_s(self) -> float:
        return self.prompt_s / self.prompt_tokens if self.prompt_tokens else 0.0

    def after(self, record: RoundRecord) -> Pace:
        took_s = record.ended_s - record.began_s
        gained = 1 + record.num_accepted / len(record.rows) if record.rows else 0.0
        if not record.num_prefill_tokens:
            return replace(self, decode_s=KEPT * self.decode_s + took_s, row_tokens=KEPT * self.row_tokens + gained)
        if gained and not self.row_tokens:
            return self  # what is the prompts' share is not known yet
        prompt_s = max(took_s - gained * self.token_s, 0.0)
        return replace(
            self,
            prompt_s=KEPT * self.prompt_s + prompt_s,
            prompt_tokens=KEPT * self.prompt_tokens + record.num_prefill_tokens,
        )

    def ended(self, num_tokens: int, *, early: bool) -> Pace:
        """early: before the limit of its request."""
        return replace(self, num_ends=KEPT * self.num_ends + early, end_tokens=KEPT * self.end_tokens + num_tokens)

    def expected_tokens(self, left: int) -> float:
        """How many tokens to expect, at most `left`, if each ends the answer with the same probability."""
        ends = min(self.num_ends / self.end_tokens, 1.0) if self.end_tokens else 0.0
        return (1 - (1 - ends) ** left) / ends if ends > 1e-9 else float(left)


@dataclass(frozen=True, slots=True)
class Load:
    """What a request still takes. left: tokens of its answer at most. unread: tokens of its prompt."""

    left: int
    unread: int


def wait_s(pace: Pace, running: Sequence[Load], ahead: Iterable[Load], unread: int, room: int) -> float:
    """Seconds until the first token of a request with so long a prompt. room: requests that run at once.

    Those ahead start in order, each where a slot is free first.
    """
    ends = [pace.expected_tokens(load.left) for load in running]
    unread += sum(load.unread for load in running)
    heapify(ends)
    for load in ahead:
        unread += load.unread
        tokens = pace.expected_tokens(load.left)
        if len(ends) < room:
            heappush(ends, tokens)
        else:
            heapreplace(ends, ends[0] + tokens)
    begins = 0.0 if len(ends) < room else ends[0]
    return begins * pace.token_s + unread * pace.prompt_token_s


def free_in_s(pace: Pace, running: Sequence[Load]) -> float:
    """Seconds until the first of those that run has ended, and so a place is free behind a full queue."""
    return wait_s(pace, running, (), 0, max(len(running), 1))


def short_in_s(expected_s: float, max_wait_s: float) -> float:
    """Seconds until a wait of expected_s is short enough to be let in, if nobody else comes; 0 or less: it is now."""
    return expected_s - SURE_SHARE * max_wait_s
