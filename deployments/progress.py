"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import progress as bars
from rich.console import Console

from model.load import Progress

BAR_AFTER_S = 2.0


@contextmanager
def loading(path_or_id: str | Path) -> Iterator[Progress]:
    """Shows on a terminal how long a checkpoint is being read, and its parts as they come.

    It moves by itself: a GGUF file is first unpacked, and its largest matrices are packed before any layer.
    """
    console = Console(stderr=True)
    columns = (bars.SpinnerColumn(), bars.TextColumn("loading {task.description}"), bars.BarColumn())
    counts = (bars.MofNCompleteColumn(), bars.TimeElapsedColumn())
    shown = bars.Progress(*columns, *counts, console=console, transient=True, disable=not console.is_terminal)
    with shown as bar:
        task = bar.add_task(Path(path_or_id).name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show
