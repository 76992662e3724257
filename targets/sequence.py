"""One sequence: its tokens, how many of them have KV, and when it ends. Integers only.

While it decodes, every token but the newest has KV: `computed == len(tokens) - 1`. A round feeds the newest
token and the draft behind it. Rejection, preemption and resumption are all changes of `computed`.
"""

from __future__ import annotations

from collections.abc import Sequence as Run
from dataclasses import dataclass, field
from itertools import pairwise

from protocol.logit_rules import Ruled, TokenLogprobs
from protocol.plan import SequenceView
from protocol.request import FinishReason, GenerateRequest, SequenceStats, SequenceTimes
from targets.grammar import Constraint

FORCED = 8  # tokens that a grammar may force in a round, at most, where no more are drafted


@dataclass(slots=True, eq=False)
class Sequence:
    """max_length: tokens that fit, prompt included (context length and KV memory both counted).

    keys: names of its first full pages (model/prefixes.py). num_kept: how many of its pages others may adopt.
    constraint: of a request with a grammar. num_cached: tokens of the prompt whose KV was kept, when it was first read.
    of_prompt: logprobs of the prompt's tokens behind its first, of a request that asks for them; so far.
    arrived_s, admitted_s, first_s, ended_s: by the stepper's clock; when it came, was first admitted, had its first
    token and its last. draft_s: of its rounds.
    """

    id: int
    request: GenerateRequest
    max_length: int
    tokens: list[int] = field(init=False, repr=False)
    computed: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    histogram: list[int] = field(default_factory=list)  # [n]: rounds in which n drafted tokens were accepted
    finish_reason: FinishReason | None = None
    num_prompt: int = field(init=False)
    keys: list[bytes] = field(default_factory=list, repr=False)
    num_kept: int = 0
    constraint: Constraint | None = field(default=None, repr=False)
    arrived_s: float = 0.0
    admitted_s: float | None = None
    first_s: float | None = None
    ended_s: float | None = None
    draft_s: float = 0.0
    num_cached: int = 0
    was_preempted: bool = False
    of_prompt: list[TokenLogprobs] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.tokens = [*self.request.prompt_ids, *self.request.resume_ids]
        self.num_prompt = len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def prefill_end(self) -> int:
        """A fresh prompt is prefilled whole and gives the first token; a resumed one leaves its newest to a round."""
        return len(self.tokens) - 1 if self.num_generated else len(self.tokens)

    @property
    def is_told(self) -> bool:
        """Whether its prompt is to be read whole, and the logprobs of its tokens told."""
        return self.request.tells_prompt and not self.num_generated

    @property
    def unread(self) -> int:
        """Tokens of the prompt that one chunk may have: the last one of a prompt that is told stands alone."""
        left = self.prefill_end - self.computed
        return left - 1 if self.is_told and left > 1 else left

    def gives_first(self, size: int) -> bool:
        """Whether a chunk of the prompt is its end, and gives the first token."""
        return self.computed + size == self.prefill_end and not self.num_generated

    @property
    def is_decoding(self) -> bool:
        return self.computed == self.prefill_end and self.num_generated > 0

    @property
    def remaining(self) -> int:
        end = min(self.num_prompt + self.request.stop.max_tokens, self.max_length)
        return end - len(self.tokens)

    @property
    def may_draft(self) -> bool:
        """Whether anything may be drafted for it: there is more than one token to come, and it was not asked not to."""
        asked = self.request.speculation
        return self.remaining > 1 and (asked is None or asked.length > 0)

    def room(self, length: int) -> int:
        """Tokens that may be verified behind the newest one, where `length` may be drafted: more where a grammar may
        force some, unless the request is not to be speculated for.
        """
        asked = self.request.speculation
        if self.constraint is None or (asked is not None and not asked.length):
            return length
        return max(length, min(FORCED, self.remaining - 1))

    @property
    def ruled(self) -> Ruled | None:
        """Its tokens under the rules of their logits; None where nothing changes behind them."""
        return self.request.rules.over(self.tokens, self.num_prompt)

    def refusal(self, draft: Run[int], pick: int) -> memoryview | None:
        """What its grammar allows behind a draft in place of a pick that it refuses; None where it takes the pick."""
        mask = self.constraint.refusal(self.tokens[self.num_prompt :], draft, pick) if self.constraint else None
        return None if mask is None else mask.data

    @property
    def stats(self) -> SequenceStats:
        return SequenceStats(self.rounds, self.drafted, self.accepted, tuple(self.histogram), self.times)

    @property
    def times(self) -> SequenceTimes:
        """Of the parts that have ended."""
        marks = [self.arrived_s, self.admitted_s, self.first_s, self.ended_s]
        queued_s, prefill_s, decode_s = (0.0 if a is None or b is None else b - a for a, b in pairwise(marks))
        return SequenceTimes(queued_s, prefill_s, decode_s, self.draft_s)

    def view(self, num_unseen: int, drafts: bool) -> SequenceView:
        return SequenceView(len(self.tokens), self.remaining, num_unseen, drafts, self.request.speculation)

    def count(self, drafted: int, accepted: int) -> None:
        """One round."""
        self.rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        self.histogram += [0] * (accepted + 1 - len(self.histogram))
        self.histogram[accepted] += 1

    def commit(self, run: Run[int]) -> tuple[int, ...]:
        """Append what the stop rules leave of a run, and return it. Sets finish_reason at the end."""
        kept = cut(run, self.remaining, self.request.stop.stop_token_ids)
        self.tokens += kept
        if kept[-1] in self.request.stop.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif self.remaining == 0:
            self.finish_reason = FinishReason.LENGTH
        return kept


def cut(run: Run[int], room: int, stop_token_ids: frozenset[int]) -> tuple[int, ...]:
    """The run up to its first stop token, that one included, and at most `room` tokens."""
    for index, token in enumerate(run[:room]):
        if token in stop_token_ids:
            return tuple(run[: index + 1])
    return tuple(run[:room])
