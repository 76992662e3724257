"""What commands print: results to stdout, warnings to stderr. A table is as wide as the terminal allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def say(*parts: str | Table) -> None:
    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def warn(lines: Iterable[str], console: Console | None = None) -> None:
    """console: one that shows a progress bar, which stays below the lines."""
    console = console or Console(stderr=True)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def table(title: str, words: Sequence[str], numbers: Sequence[str], rows: Iterable[Iterable[str]]) -> Table:
    """words, numbers: heads of the columns to the left, and of those after them, which are aligned to the right."""
    made = Table(title=title)
    for head in words:
        made.add_column(head, no_wrap=True)
    for head in numbers:
        made.add_column(head, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))
