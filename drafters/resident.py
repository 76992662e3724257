"""What the pool holds of one sequence, and of a fork of one."""

from __future__ import annotations

from dataclasses import dataclass, field

from drafters.ahead import Ahead, BranchJob, Lead, Outcome
from drafters.known import Key, Known
from drafters.nested import Pick
from drafters.rounds import Draft
from protocol.plan import DepthRule
from protocol.request import SamplingParams


@dataclass(slots=True)
class Resident:
    """id: its name in the drafter. depth and sampling: of the last message. probed: the position from which on no
    probe has told of its committed tokens; at first its base length, for a prompt is not the target's own text. picks:
    the drafts among its known tokens, by position. A fork is one of its own, under the key of its sequence.
    """

    key: Key
    id: int
    depth: DepthRule
    sampling: SamplingParams
    last_used: float
    probed: int
    known: Known = field(default_factory=Known)
    job: Draft | None = None
    picks: dict[int, Pick] = field(default_factory=dict, repr=False)
    ahead: Ahead | None = None
    forks: dict[Outcome, Resident] = field(default_factory=dict, repr=False)

    @property
    def is_rolling(self) -> bool:
        """Whether something of its drafting ahead is under way."""
        return bool(self.forks) or isinstance(self.job, Lead | BranchJob)

    def add(self, pick: Pick) -> None:
        """A draft behind its known tokens."""
        self.picks[len(self.known.tokens)] = pick
        self.known.tokens.append(pick.token)
