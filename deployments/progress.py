"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from model.load import Progress

BAR_AFTER_S = 2.0


@contextmanager
def loading(directory: Path) -> Iterator[Progress]:
    with tqdm(unit="layer", desc=f"loading {directory.name}", delay=BAR_AFTER_S, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
