"""What became of drafted tokens, collected until there is enough to learn from what confidences are worth."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.draft import DraftBlock
from protocol.plan import Plan
from router.confidence import Calibration
from targets.ahead import rule_of
from targets.verify import num_accepted

ENOUGH = 16  # tokens that confidence is calibrated by at a time


class Fates:
    def __init__(self) -> None:
        self.calibration = Calibration()
        self._waiting: dict[int, tuple[list[float], list[bool]]] = {}  # by exit: confidences, and whether right

    def add(self, plan: Plan, blocks: Iterable[DraftBlock | None], picks: Iterable[list[int]]) -> None:
        """One round. picks: by row, one more than tokens of its block were verified. Exits that nobody asked for, which
        a pool may name as it likes, are left out.
        """
        for index, (block, own) in enumerate(zip(blocks, picks, strict=False)):
            if block is None or len(own) < 2:
                continue
            accepted = num_accepted(own, block.tokens[: len(own) - 1])
            known = min(accepted + 1, len(own) - 1)
            rule, exit_ = rule_of(plan, index), block.exits[known - 1]
            if rule is not None and exit_ in rule.exits:
                self._add(exit_, block.confidences[:known], accepted)

    def _add(self, exit_: int, confidences: tuple[float, ...], accepted: int) -> None:
        sure, right = self._waiting.setdefault(exit_, ([], []))
        sure += confidences
        right += [True] * accepted + [False] * (len(confidences) - accepted)
        if len(sure) >= ENOUGH:
            del self._waiting[exit_]
            self.calibration.observe(exit_, sure, right)
