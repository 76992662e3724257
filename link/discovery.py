"""Which draft replicas there are, and which of them a target can use."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from link.secret import Secret
from protocol.limits import MessageLimits
from protocol.stats import PoolStats, Runs
from router.costs import DrafterCosts

logger = logging.getLogger(__name__)

DESCRIBE_TIMEOUT_S = 2.0


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
    num_targets: int
    stats: PoolStats
    costs: DrafterCosts | None = field(default=None, repr=False)
    limits: MessageLimits = field(default_factory=MessageLimits)
    secret: Secret | None = field(default=None, repr=False, compare=False)
    steps: Runs | None = None


Discover = Callable[[], Awaitable[Sequence[PoolMember]]]


@dataclass(frozen=True, slots=True)
class Need:
    """What a target asks of a drafter: its own vocabulary, and the exits that its depth rules name, if any."""

    vocabulary_hash: str
    exits: tuple[int, ...]

    def met_by(self, member: PoolMember) -> bool:
        return member.vocabulary_hash == self.vocabulary_hash and set(self.exits) <= set(member.exits)


def serve_discovery(pool: Any) -> Discover:
    """Asks every replica of a Serve deployment, by its handle; those that do not answer in time are left out."""

    async def discover() -> Sequence[PoolMember]:
        try:
            response = pool.broadcast("describe")
            answers = await response.results_async(timeout_s=DESCRIBE_TIMEOUT_S, return_exceptions=True)
        except Exception as error:
            logger.debug("no draft replica to be found: %s", type(error).__name__)
            return ()
        return [answer for answer in answers if isinstance(answer, PoolMember)]

    return discover
