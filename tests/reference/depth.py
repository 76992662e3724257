"""The obvious depth bookkeeping: a set of what has been computed, and values computed from scratch.

A toy stack stands for the model: what enters segment s at position p is its KV entry there, and what leaves it
depends on every KV entry up to p. So a stale or missing entry anywhere changes all that is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


def leave(segment: int, entries: list[int]) -> int:
    """What position len(entries) - 1 is on leaving a segment whose KV entries up to there are given."""
    return hash((segment, *entries))


def from_scratch(tokens: list[int], num_segments: int) -> tuple[list[list[int]], list[list[int]]]:
    """KV entries and hidden states, [num_segments][num_tokens] each."""
    entries, hidden = [], []
    above = list(tokens)
    for segment in range(num_segments):
        entries.append(above)
        above = [leave(segment, above[: position + 1]) for position in range(len(above))]
        hidden.append(above)
    return entries, hidden


@dataclass
class StepByStep:
    """One sequence. done: the (segment, position) pairs whose KV exists."""

    tokens: list[int] = field(default_factory=list)
    done: set[tuple[int, int]] = field(default_factory=set)

    def missing(self, segment: int, length: int) -> list[int]:
        return [position for position in range(length) if (segment, position) not in self.done]

    def run(self, segment: int, length: int) -> None:
        self.done |= {(segment, position) for position in range(length)}

    def reject(self, length: int) -> None:
        del self.tokens[length:]
        self.done = {(segment, position) for segment, position in self.done if position < length}
