"""The router in plain words: what each arm promises for a batch, and what a policy believes. For people and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

import numpy as np

from protocol.plan import BatchView, Mode
from router.belief import DRAFT, MODES, PLAIN, REST, WIDE, Belief, prior
from router.filters import begin, sigmoid
from router.policy import Ema, Fixed, Goodput, Off, Policy
from router.rounds import batch_of, expected, rounds_of
from router.tables import Costs

DIGITS = 4


@dataclass(frozen=True, slots=True)
class Option:
    """One arm at one length. depth: the exit, in layers; None: off. tokens: expected of a round of the whole batch.

    draft_ms: the part of drafting that is waited for, its link included.
    """

    mode: Mode
    depth: int | None
    length: int
    tokens: float
    draft_ms: float
    verify_ms: float
    rest_ms: float

    @property
    def name(self) -> str:
        return "off" if self.depth is None else f"depth {self.depth}"

    @property
    def round_ms(self) -> float:
        return self.draft_ms + self.verify_ms + self.rest_ms

    @property
    def goodput(self) -> float:
        """Tokens per second of the batch."""
        return 1e3 * self.tokens / self.round_ms


def options(belief: Belief, costs: Costs, view: BatchView) -> tuple[Option, ...]:
    """Off, then by mode and exit every length that there is room for."""
    batch = batch_of(view, costs)
    rounds = rounds_of(belief, costs, batch, expected(belief, costs, batch.num_rows))
    off = Option(Mode.IN_TURN, None, 0, batch.num_rows, 0.0, rounds.plain_ms, rounds.rest_ms)
    return (
        off,
        *(
            Option(mode, depth, length, tokens, draft_ms, pass_ms, rounds.rest_ms)
            for mode in batch.modes
            for exit_, depth in enumerate(costs.exits)
            for _, length, tokens, draft_ms, pass_ms in rounds.by_length(mode, exit_)
        ),
    )


def best(found: Sequence[Option]) -> Option:
    return max(found, key=lambda option: option.goodput)


def assumed(costs: Costs, rates: Mapping[int, float]) -> Belief:
    """The prior with these acceptance rates by exit; an exit that is left out lies between its neighbours."""
    known = sorted(rates)
    each = np.interp(costs.exits, known, [min(max(rates[exit_], 1e-4), 1 - 1e-4) for exit_ in known]).tolist()
    odds = [log(rate / (1 - rate)) for rate in each]
    return replace(prior(costs), accept=begin(odds, [1.0] * len(odds)))


def describe(policy: Policy) -> dict[str, Any]:
    """Times in ms, rates in tokens per second of this target, ratios of measured to profiled time."""
    match policy:
        case Goodput():
            return _goodput(policy)
        case Ema():
            return {"policy": "ema", "acceptance": _by_exit(policy.costs, policy.rates)}
        case Fixed(depth, length, mode):
            return {"policy": "fixed", "depth": depth, "length": length, "mode": mode.value}
        case Off():
            return {"policy": "off"}
    raise TypeError(f"{type(policy).__name__} is no policy that can be described")


def _goodput(policy: Goodput) -> dict[str, Any]:
    belief, costs, decision = policy.belief, policy.costs, policy.decision
    exit_, exponents = decision.arm.exit, policy.view.exponents if policy.view else {}
    return {
        "policy": "goodput",
        "arm": {
            "mode": decision.arm.mode.value,
            "depth": None if exit_ is None else costs.exits[exit_],
            "length": decision.length,
            "tokens_per_second": round(1e3 * decision.rate, DIGITS),
            "stop_probability": round(decision.stop_probability, DIGITS),
            "trial": decision.trial,
        },
        "arms": [] if policy.view is None else [_told(one) for one in _best_of_each(belief, costs, policy.view)],
        "acceptance": _by_exit(costs, list(map(sigmoid, belief.accept.values))),
        "acceptance_deviations_log_odds": _by_exit(costs, [belief.accept.doubt(at) for at in range(len(costs.exits))]),
        "times_over_profile": _ratios(policy),
        "ahead": dict(zip(("served", "waited"), _rounded(belief.ahead.values), strict=True)),
        "drafts_go_on": round(belief.goes_on, DIGITS),
        "confidence_exponents": {str(at): round(power, DIGITS) for at, power in exponents.items()},
        "wait_ms": round(belief.wait_ms, DIGITS),
        "unseen_tokens": _by_exit(costs, belief.lags),
        "opening": None if decision.opening is None else costs.exits[decision.opening],
    }


def _best_of_each(belief: Belief, costs: Costs, view: BatchView) -> list[Option]:
    """The best length of every arm."""
    arms: dict[tuple[Mode, int | None], list[Option]] = {}
    for option in options(belief, costs, view):
        arms.setdefault((option.mode, option.depth), []).append(option)
    return [best(found) for found in arms.values()]


def _told(option: Option) -> dict[str, Any]:
    return {
        "arm": option.name,
        "mode": option.mode.value,
        "length": option.length,
        "tokens_per_round": round(option.tokens, DIGITS),
        "round_ms": round(option.round_ms, DIGITS),
        "tokens_per_second": round(option.goodput, DIGITS),
    }


def _ratios(policy: Goodput) -> dict[str, float]:
    """At the size of the batch."""
    costs, num_rows = policy.costs, len(policy.view.sequences) if policy.view else 1
    ratios = _rounded(list(map(exp, policy.belief.cost[costs.size(num_rows)].values)))
    passes = {f"verify, {mode.value}": ratios[WIDE + at] for at, mode in enumerate(MODES)}
    return {"verify, nothing drafted": ratios[PLAIN], **passes, "draft": ratios[DRAFT], "rest": ratios[REST]}


def _by_exit(costs: Costs, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(map(str, costs.exits), _rounded(values), strict=True))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
