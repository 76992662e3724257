"""A drafter's stream heads, and how many of them are worth their time.

Streams never change what is drafted (model/streams.py), so they pay exactly where a drafted token takes less time with
them. That depends on the machine, the exit, the number of rows and how often guesses are right in the text at hand; so
it is not modelled but measured in service: each number of streams gets its trials, and the one with the least median
time per token is used; where that saves next to nothing, none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from drafters.manifest import STREAM_WEIGHTS, weight_name
from model.decoder import Decoder
from model.kv import PagedKV
from model.rollout import Drafted, Rollout
from model.streams import StreamHead
from protocol.errors import ConfigError

KEPT = 16  # times of each number of streams
TRIALS = 4  # before any is preferred
TRIAL_EVERY = 64  # drafts, one is with another number
WORTH = 0.97  # of the time without streams, that those in use take at the most
MOST_NEW = 8  # tokens per row that a draft may begin with for its time to tell something


@dataclass(slots=True)
class _Arms:
    """times: by number of streams, the last ones per token, in ms. turn: drafts so far."""

    times: list[deque[float]]
    turn: int = 0


@dataclass(slots=True)
class Pace:
    """Chooses among 0 to `most` streams, for each exit and each doubling of the rows by itself."""

    most: int
    _arms: dict[tuple[int, int], _Arms] = field(default_factory=dict)

    def choose(self, depth: int, num_rows: int) -> int:
        arms = self._of(depth, num_rows)
        arms.turn += 1
        return choose([tuple(times) for times in arms.times], arms.turn)

    def add(self, depth: int, num_rows: int, num_streams: int, ms_per_token: float) -> None:
        self._of(depth, num_rows).times[num_streams].append(ms_per_token)

    def told(self) -> dict[str, list[float | None]]:
        """Median ms per token by "exit/rows" and number of streams; None: never tried."""
        return {
            f"{depth}/{1 << doubling >> 1}": [median(times) if times else None for times in arms.times]
            for (depth, doubling), arms in sorted(self._arms.items())
        }

    def _of(self, depth: int, num_rows: int) -> _Arms:
        key = depth, num_rows.bit_length()
        if key not in self._arms:
            self._arms[key] = _Arms([deque(maxlen=KEPT) for _ in range(self.most + 1)])
        return self._arms[key]


def choose(times: Sequence[Sequence[float]], turn: int) -> int:
    """Pure. times: by number of streams. Those with too few go first; then none, unless some save enough time; each
    TRIAL_EVERYth turn is another's.
    """
    fewest = min(range(len(times)), key=lambda arm: len(times[arm]))
    if len(times[fewest]) < TRIALS:
        return fewest
    best = min(range(len(times)), key=lambda arm: median(times[arm]) * (1 if arm else WORTH))
    if turn % TRIAL_EVERY:
        return best
    return (best + 1 + turn // TRIAL_EVERY % (len(times) - 1)) % len(times) if len(times) > 1 else best


@dataclass(slots=True)
class StreamUse:
    """most: heads that are used at every exit; with a pace, as many of them as it chooses. clock: seconds."""

    most: int = 0
    pace: Pace | None = None
    clock: Callable[[], float] = time.perf_counter

    def roll_out(
        self, decoder: Decoder, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None
    ) -> list[Drafted]:
        """As the decoder's."""
        most = self.most if max(row.length for row in rows) > 1 else 0
        if not most or self.pace is None:
            return decoder.roll_out(rows, kv, depth, boundary, most)
        num_streams, began = self.pace.choose(depth, len(rows)), self.clock()
        drafted = decoder.roll_out(rows, kv, depth, boundary, num_streams)
        if max(len(row.tokens) for row in rows) <= MOST_NEW:
            elapsed_ms = 1e3 * (self.clock() - began)
            self.pace.add(depth, len(rows), num_streams, elapsed_ms / sum(map(len, drafted)))
        return drafted


def add_streams(decoder: Decoder, directory: Path, exits: Sequence[int], trained: int, wanted: int | None) -> StreamUse:
    """Gives the decoder the checkpoint's heads. trained: how many there are at every exit; wanted: how many are used,
    None: as many as turn out to pay. Raises ConfigError.
    """
    if wanted is not None and not 0 <= wanted <= trained:
        raise ConfigError(f"streams: {wanted} are asked for, but {directory} has {trained} at every exit")
    most = trained if wanted is None else wanted
    if not most:
        return StreamUse()
    heads = load_streams(directory, exits, most, decoder.config.hidden_size)
    for depth in exits:
        decoder.add_streams(depth, [StreamHead(*(part.to(decoder.device) for part in own)) for own in heads[depth]])
    return StreamUse(most, Pace(most) if wanted is None else None)


def load_streams(directory: Path, exits: Sequence[int], count: int, hidden_size: int) -> Mapping[int, list[StreamHead]]:
    """The first `count` heads of every exit, the nearest stream first. Raises ConfigError."""
    path = directory / STREAM_WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            return {at: [_head(file, at, stream, hidden_size) for stream in range(1, count + 1)] for at in exits}
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing, though the manifest beside it tells of streams; or set streams: 0"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} does not hold the streams of the manifest beside it: {error}") from None


def _head(file: Any, exit_: int, stream: int, hidden_size: int) -> StreamHead:
    head = StreamHead(*(file.get_tensor(weight_name(exit_, stream, part)).float() for part in StreamHead._fields))
    width = head.inner.shape[0]
    if head.inner.shape != (width, 2 * hidden_size) or head.outer.shape != (hidden_size, width):
        raise ValueError(
            f"{weight_name(exit_, stream, 'inner')} and its outer matrix are {tuple(head.inner.shape)} and "
            f"{tuple(head.outer.shape)}, which do not fit a hidden size of {hidden_size}"
        )
    return head
