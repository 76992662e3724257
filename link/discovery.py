"""Which draft replicas there are, and which of them a target can use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from link.secret import Secret
from protocol.limits import MessageLimits
from protocol.stats import PoolStats, Runs
from router.costs import DrafterCosts


@dataclass(frozen=True, slots=True)
class PoolMember:
    """What a draft replica says of itself. incarnation: new with every start of the replica.

    costs: of its drafter; None: not measured. limits: of a message to it. secret: proved at the beginning of a link to
    it; None where there is none. steps: which code runs those of its drafter.
    """

    address: str
    incarnation: str
    exits: tuple[int, ...]
    vocabulary_hash: str
    max_positions: int
    stats: PoolStats
    costs: DrafterCosts | None = field(default=None, repr=False)
    limits: MessageLimits = field(default_factory=MessageLimits)
    secret: Secret | None = field(default=None, repr=False, compare=False)
    steps: Runs | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The draft replicas that answered. is_complete: whether all that there are did, in time."""

    members: Sequence[PoolMember] = ()
    is_complete: bool = True


Discover = Callable[[], Awaitable[Found]]


@dataclass(frozen=True, slots=True)
class Need:
    """What a target asks of a drafter: its own vocabulary, and the exits that its config names, if any."""

    vocabulary_hash: str
    exits: tuple[int, ...]

    def met_by(self, member: PoolMember) -> bool:
        return member.vocabulary_hash == self.vocabulary_hash and set(self.exits) <= set(member.exits)
