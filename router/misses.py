"""The miss rule: wait for a branch, for a fresh draft, or verify with what is at hand?

A branch that is on its way is waited for as long as a fresh draft would take, since most outcomes have one and it
comes sooner; once branches of a round have come and none is behind the outcome, there is nothing to wait for.

A round that waits commits more tokens in more time. It waits when that is more tokens per second:

    (tokens + fresh) / (verify_ms + wait_ms)  >=  tokens / verify_ms

where `tokens` is what the round commits without, one for each row and what it accepts of the windows at hand, and
`fresh` is what would be accepted of the fresh ones. All of it is measured: means over the rounds lately. Who never
waits learns nothing of waiting, so every RETRY rounds that did not are followed by one that does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

NEW = 0.1  # share of a new sample in a mean
RETRY = 16
VAIN = 3  # rounds in a row whose branches did not come, after which nobody waits for them
ENOUGH = 8  # waits, and windows, before the rule is applied


@dataclass(frozen=True, slots=True)
class Rates:
    """Running means; None: nothing seen yet. accepted: tokens of a window. num_waits, num_windows: seen so far.

    num_skipped: rounds since the last wait that would have had to wait, and did not. num_vain: rounds in a row whose
    branches did not come in time to be waited for.
    """

    verify_ms: float | None = None
    wait_ms: float | None = None
    accepted: float | None = None
    num_waits: int = 0
    num_windows: int = 0
    num_skipped: int = 0
    num_vain: int = 0


def patience_ms(rates: Rates) -> float:
    """How long branches that are on their way are waited for: no longer than a fresh draft, nor than a pass takes."""
    if rates.wait_ms is None or rates.verify_ms is None:
        return 0.0
    gave_up = rates.num_vain >= VAIN and rates.num_vain % RETRY != 0
    return 0.0 if gave_up else min(rates.wait_ms, rates.verify_ms)


def awaited(rates: Rates, came: bool) -> Rates:
    """After a round that branches had been asked for."""
    return replace(rates, num_vain=0 if came else rates.num_vain + 1)


def worth_waiting(rates: Rates, num_rows: int, num_hits: int, num_missed: int) -> bool:
    """Whether the num_missed rows without a window are worth the wait for fresh drafts; the other rows wait too."""
    if rates.verify_ms is None or rates.wait_ms is None or rates.accepted is None:
        return True
    if min(rates.num_waits, rates.num_windows) < ENOUGH or rates.num_skipped >= RETRY:
        return True
    tokens = num_rows + num_hits * rates.accepted
    fresh = num_missed * rates.accepted
    return (tokens + fresh) * rates.verify_ms >= tokens * (rates.verify_ms + rates.wait_ms)


def verified(rates: Rates, verify_ms: float, num_windows: int, accepted: int) -> Rates:
    """After a pass in which so many tokens of so many windows were accepted."""
    per_window = _mean(rates.accepted, accepted / num_windows, rates.num_windows) if num_windows else rates.accepted
    return replace(
        rates,
        verify_ms=_mean(rates.verify_ms, verify_ms, rates.num_windows),
        accepted=per_window,
        num_windows=rates.num_windows + num_windows,
    )


def waited(rates: Rates, wait_ms: float) -> Rates:
    """What was believed before a pause is forgotten."""
    before = None if rates.num_skipped else rates.wait_ms
    return replace(rates, wait_ms=_mean(before, wait_ms, rates.num_waits), num_waits=rates.num_waits + 1, num_skipped=0)


def skipped(rates: Rates) -> Rates:
    return replace(rates, num_skipped=rates.num_skipped + 1)


def _mean(before: float | None, sample: float, seen: int) -> float:
    """Of all samples at first, later ones more, so that a first hiccup is soon forgotten; then of the latest."""
    return sample if before is None else before + max(NEW, 2 / (seen + 2)) * (sample - before)
