"""What rounds of any mode tell of all of them: the parts of a round, its tokens, and how far each mode is off the law.

    parts     verifying, a fresh draft and the rest are the same work in every mode: means over the rounds lately
    tokens    the chance of a drafted token; that of a mode is drawn to that of all, for it differs little
    hits      of modes that draft ahead; before any were seen, by the chance that all is accepted and the next one too
    misses    what was done about them, as seen; before, as router/modes.py foresees it
    offsets   what rounds take beyond the law (router/offsets.py)

So the tokens of a mode are a matter of lengths and chances, which all rounds tell of, and not of the luck of its few.
Evidence fades, and a change of text or of the pool is followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from router.modes import AHEAD, Misses, Mode, Outlook, Round, foreseen, goodput, half_share, law_ms
from router.offsets import Offsets

TIMES, HITS, TOKENS = 24.0, 48.0, 100.0  # rounds after which evidence counts half
STARTLED = 100  # rounds that the times of a round are older by after a surprise
SLOWER = 4  # evidence of modes that are not played fades
CHANCE, CHANCE_WEIGHT = 0.6, 4.0  # of a drafted token before any was verified
OWN_WEIGHT = 500.0  # tokens of a mode by which its own chance counts as much as that of all
LENGTH_WEIGHT = 16.0  # windows, likewise
CORRECTED = 0.3  # share of corrections that have a branch, before any were seen
WEIGHT = 8.0  # windows or rounds by which what was seen counts as much as what was foreseen
HICCUP = 1.5  # times the median; what is beyond is the machine's


@dataclass(slots=True)
class Share:
    """Of faded sums."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, total: float, weight: float) -> None:
        self.total += total
        self.weight += weight

    def fade(self, num_rounds: float, half_life: float) -> None:
        self.total *= 0.5 ** (num_rounds / half_life)
        self.weight *= 0.5 ** (num_rounds / half_life)

    def drawn_to(self, prior: float, weight: float) -> float:
        return (self.total + weight * prior) / (self.weight + weight)

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else 0.0


@dataclass(slots=True)
class Seen:
    """Of one mode. chance: of drafted tokens whose fate is known. length: of a window. hits, windows: of those planned,
    at hand and in the end. waits: of rounds, for fresh ones.
    """

    chance: Share = field(default_factory=Share)
    length: Share = field(default_factory=Share)
    hits: Share = field(default_factory=Share)
    windows: Share = field(default_factory=Share)
    waits: Share = field(default_factory=Share)

    def add(self, rounds: Iterable[Round]) -> None:
        for one in rounds:
            windows = [(length, kept) for length, kept in zip(one.lengths, one.accepted, strict=True) if length]
            self.chance.add(sum(kept for _, kept in windows), sum(min(kept + 1, length) for length, kept in windows))
            self.length.add(sum(length for length, _ in windows), len(windows))
            self.hits.add(one.num_hits, one.num_planned)
            self.windows.add(len(windows), one.num_planned)
            self.waits.add(one.draft_ms is not None, 1)

    def elsewhere(self) -> Seen:
        """What of it is as good as true at another size of batch."""
        return Seen(replace(self.chance), replace(self.length), replace(self.hits))

    def fade(self, num_rounds: float) -> None:
        self.chance.fade(num_rounds, TOKENS)
        self.length.fade(num_rounds, TIMES)
        for share in (self.hits, self.windows, self.waits):
            share.fade(num_rounds, HITS)


class Beliefs:
    """Of one target and one size of batch."""

    def __init__(self, modes: Sequence[Mode], like: Beliefs | None = None) -> None:
        """like: of another size of batch. What drafts are worth is much the same there, what rounds take is not."""
        self._verify_ms, self._draft_ms, self._rest_ms = Share(), Share(), Share()
        known = like._seen if like else {}
        self._seen: dict[Mode, Seen] = {mode: known[mode].elsewhere() if mode in known else Seen() for mode in modes}
        self._all = _pooled(self._seen)
        self._offsets: Offsets = Offsets(modes, like._offsets if like else None)

    @property
    def is_blank(self) -> bool:
        """No round of this size was seen."""
        return not self._verify_ms.weight

    def learn(self, mode: Mode, rounds: Sequence[Round], num_rows: int) -> None:
        """Rounds of this mode, each behind another of it."""
        for one, seen in self._seen.items():
            seen.fade(len(rounds) if one is mode else len(rounds) / SLOWER)
        self._seen[mode].add(rounds)
        self._all = _pooled(self._seen)
        if not self.is_blank and self._compare(mode, rounds, num_rows):
            for share in (self._verify_ms, self._draft_ms, self._rest_ms):
                share.fade(STARTLED, TIMES)
        part = self._off(mode)
        half = half_share(num_rows) if mode is Mode.LANES else 1.0
        _follow(self._verify_ms, [one.verify_ms / part / half for one in rounds])
        _follow(self._draft_ms, [one.draft_ms / part for one in rounds if one.draft_ms is not None])
        _follow(self._rest_ms, [one.rest_ms / part for one in rounds])

    def _compare(self, mode: Mode, rounds: Sequence[Round], num_rows: int) -> bool:
        """What they took with what the law says of rounds that waited as these did; whether that was a surprise."""
        outlook = self.outlook(mode, num_rows)
        ratios = [one.ms / law_ms(mode, outlook, float(one.draft_ms is not None)) for one in rounds]
        return self._offsets.observe(mode, math.log(fmean(_steadied(ratios))), len(rounds))

    def outlook(self, mode: Mode, num_rows: int) -> Outlook:
        chance, length = self._chance(mode), self._length(mode)
        return Outlook(
            num_rows=num_rows,
            verify_ms=self._verify_ms.mean,
            draft_ms=self._draft_ms.mean,
            rest_ms=self._rest_ms.mean,
            accepted=chance * (1 - chance**length) / (1 - chance),
        )

    def rate(self, mode: Mode, num_rows: int) -> float:
        """Tokens per ms."""
        return self._goodput(mode, num_rows, self._hits(mode)) / self._off(mode)

    def doubt(self, mode: Mode, over: Mode, num_rows: int) -> float:
        """By what share the rate of a mode may be higher than it looks, next to that of another: one deviation."""
        own = self._offsets.doubt(mode, over)
        if mode not in AHEAD:
            return own
        hits = self._hits(mode)
        more = math.sqrt(hits * (1 - hits) / (self._seen[mode].hits.weight + WEIGHT))
        by_hits = self._goodput(mode, num_rows, min(hits + more, 1.0)) / self._goodput(mode, num_rows, hits) - 1
        return math.hypot(own, by_hits)

    def _goodput(self, mode: Mode, num_rows: int, hits: float) -> float:
        """By the law, with misses as foreseen and, the more rounds there were, as they were."""
        outlook, seen = self.outlook(mode, num_rows), self._seen[mode]
        prior = foreseen(mode, outlook, hits)
        waits = seen.waits.drawn_to(prior.waits, WEIGHT)
        windows = seen.windows.drawn_to(prior.windows, WEIGHT)
        return goodput(mode, outlook, Misses(waits, windows))

    def _off(self, mode: Mode) -> float:
        return math.exp(self._offsets.level + self._offsets.of(mode))

    def _chance(self, mode: Mode) -> float:
        """Below 1."""
        return self._seen[mode].chance.drawn_to(self._all.chance.drawn_to(CHANCE, CHANCE_WEIGHT), OWN_WEIGHT)

    def _length(self, mode: Mode) -> float:
        return self._seen[mode].length.drawn_to(self._all.length.mean, LENGTH_WEIGHT)

    def _hits(self, mode: Mode) -> float:
        """Drawn to that of all modes that draft ahead, and that to what chance and length foretell."""
        if mode not in AHEAD:
            return 0.0
        full = self._chance(mode) ** (1 + self._length(mode))
        all_of = self._all.hits.drawn_to(full + CORRECTED * (1 - full), WEIGHT)
        return self._seen[mode].hits.drawn_to(all_of, WEIGHT)


def _pooled(seen: Mapping[Mode, Seen]) -> Seen:
    """Of all modes; hits of those that draft ahead."""
    found = Seen()
    for mode, one in seen.items():
        found.chance.add(one.chance.total, one.chance.weight)
        found.length.add(one.length.total, one.length.weight)
        if mode in AHEAD:
            found.hits.add(one.hits.total, one.hits.weight)
    return found


def _follow(mean: Share, samples: Sequence[float]) -> None:
    mean.fade(len(samples), TIMES)
    mean.add(sum(_steadied(samples)), len(samples))


def _steadied(samples: Sequence[float]) -> list[float]:
    """Without the worst of hiccups."""
    limit = HICCUP * median(samples) if samples else 0.0
    return [min(sample, limit) for sample in samples]
