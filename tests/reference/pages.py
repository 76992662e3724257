"""The obvious ledger: every sequence holds a copy of what was written at each of its positions."""

from __future__ import annotations


class DictLedger:
    def __init__(self) -> None:
        self._values: dict[int, list[int]] = {}

    def open(self, sequence: int) -> None:
        self._values[sequence] = []

    def length(self, sequence: int) -> int:
        return len(self._values[sequence])

    def write(self, sequence: int, position: int, value: int) -> None:
        assert position == len(self._values[sequence])
        self._values[sequence].append(value)

    def read(self, sequence: int) -> list[int]:
        return self._values[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        del self._values[sequence][length:]

    def free(self, sequence: int) -> None:
        del self._values[sequence]
