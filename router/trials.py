"""When to draft although plain decoding looks better: what looks hopeless was learned from text that has passed.

Plain decoding brings no evidence, so it is left now and then for a few rounds: the rarer the more often that was in
vain, and sooner when every sequence is another one than those that were drafted for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class Trials:
    """patience: rounds of plain decoding before a first trial; sooner: by how much for other sequences alone.

    Doubles with every trial in vain, up to `doublings` times.
    """

    patience: int = 32
    sooner: int = 8
    doublings: int = 4
    _rested: int = 0  # rounds since the last that drafted
    _failed: int = 0
    trying: bool = False
    _known: frozenset[int] = field(default_factory=frozenset)

    def pass_round(self, drafted: Collection[int]) -> None:
        """One that drafted for these sequences, or for none."""
        self._rested = 0 if drafted else self._rested + 1
        if drafted:
            self._known = frozenset(drafted)

    def due(self, sequence_ids: Collection[int]) -> bool:
        patience = self.patience << min(self._failed, self.doublings)
        return self._rested >= (patience if self._known.intersection(sequence_ids) else patience // self.sooner)

    def decide(self, drafts: bool, hopes: bool) -> None:
        """What was decided: to draft or not, and whether in spite of the evidence."""
        self._failed = 0 if drafts and not hopes else self._failed + (self.trying and not drafts)
        self.trying = hopes

    def forget(self) -> None:
        """Other sequences come, maybe under the names of earlier ones."""
        self._known = frozenset()


@dataclass(slots=True)
class Retries:
    """When to play a rule again that looks worse than the choice: rarer with every time that was in vain.

    patience: decisions before a first one.
    """

    patience: int = 6
    doublings: int = 5
    _rested: int = 0
    _failed: int = 0
    _tried: int | None = None  # the rule of the last one, until the next decision has judged it

    def due(self, chosen: int | None) -> bool:
        """Told of the rule that a decision found best."""
        if self._tried is not None:
            self._failed = 0 if chosen == self._tried else self._failed + 1
            self._tried = None
        self._rested += 1
        return self._rested > self.patience << min(self._failed, self.doublings)

    def begin(self, rule: int | None) -> None:
        self._rested, self._tried = 0, rule
