"""The router's reasons, as values: what every arm would bring, and what a live router believes.

`options` foretells every depth rule at every length, the best budget of each, and off, for one batch; `describe` tells
what a policy has learned and chosen, in plain values as JSON takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.plan import DepthRule
from router.choose import Arm, best, keep_or_switch, off, survivals
from router.goodput import Goodput
from router.policy import Fixed, Off, Policy, Table
from router.predict import Cost, Predictor

Floats = npt.NDArray[np.float64]

DIGITS = 4


@dataclass(frozen=True, slots=True)
class Option:
    """One arm, foretold. rule None: off. budget: lengths as the router would set them, not all the same.

    tokens: expected of a round of the whole batch. chosen: the router's choice.
    """

    rule: DepthRule | None
    lengths: tuple[int, ...]
    tokens: float
    cost: Cost
    budget: bool = False
    chosen: bool = False

    @property
    def goodput(self) -> float:
        """Tokens per second of the batch."""
        return 1e3 * self.tokens / self.cost.total_ms


def options(
    predictor: Predictor, hazards: Sequence[Floats], num_rows: int, context: float, room: int
) -> tuple[Option, ...]:
    """For a batch of sequences that are all alike: off, then rule by rule the lengths 1 to `room` and the best budget.

    hazards: for each rule, [length]: that a token is accepted, given that all before it were.
    """
    rules, length = predictor.tables.rules, min(room, predictor.tables.length)
    arms: list[tuple[Arm, bool]] = [(off(predictor, num_rows, context), True)]
    survival = survivals(np.stack(hazards), [1.0] * num_rows, [length] * num_rows)
    for rule, budget in enumerate(best(predictor, survival, context) if length > 0 else []):
        tokens = num_rows * (1 + np.cumsum(survival[rule, 0]))
        for number in range(1, length + 1):
            lengths = (number,) * num_rows
            ms = predictor.round(rule, lengths, context).total_ms
            arms.append((Arm(rule, lengths, float(tokens[number - 1]), ms), False))
        arms.append((budget, True))
    choice = keep_or_switch(None, [arm for arm, budget in arms if budget], hysteresis=0.0, inertia=0.0)
    return tuple(
        Option(
            None if arm.rule is None else rules[arm.rule],
            arm.lengths,
            arm.tokens,
            predictor.round(arm.rule, arm.lengths, context),
            budget and arm.rule is not None,
            arm is choice,
        )
        for arm, budget in arms
    )


def constant_hazards(rules: Sequence[DepthRule], length: int, by_exit: Mapping[int, float]) -> tuple[Floats, ...]:
    """The same acceptance at every position; of a cascade, and of an exit left out, that between its neighbours'."""
    exits = sorted(by_exit)
    rates = [by_exit[exit_] for exit_ in exits]
    return tuple(np.full(length, np.interp(sum(rule.exits) / len(rule.exits), exits, rates)) for rule in rules)


def rule_name(rule: DepthRule | None) -> str:
    if rule is None:
        return "off"
    return f"cascade {'-'.join(map(str, rule.exits))}" if rule.thresholds else f"depth {rule.exits[0]}"


def describe(policy: Policy) -> dict[str, Any]:
    """Times in ms, rates in tokens per second of this target."""
    match policy:
        case Goodput():
            return _goodput(policy)
        case Fixed(depth, length):
            return {"policy": "fixed", "rule": rule_name(depth), "length": length}
        case Table(depth, lengths):
            table = {str(batch): length for batch, length in lengths}
            return {"policy": "table", "rule": rule_name(depth), "table": table}
        case Off():
            return {"policy": "off"}
    raise TypeError(f"{type(policy).__name__} is no policy that can be described")


def _goodput(policy: Goodput) -> dict[str, Any]:
    acceptance, calibration, rules = policy.acceptance, policy.calibration, policy.config.rules
    return {
        "policy": "goodput",
        "arm": _arm(policy, policy.arm) if policy.arm else None,
        "arms": [_arm(policy, arm) for arm in policy.arms],
        "forecast": _rounded(asdict(policy.forecast)),
        "rules": [
            {
                "rule": rule_name(rule),
                "hazards": [round(float(hazard), DIGITS) for hazard in acceptance.hazards(number)],
                "evidence_tokens": round(acceptance.weight(number), 1),
            }
            for number, rule in enumerate(rules)
        ],
        "num_alarms": acceptance.num_alarms,
        "confidence_powers": {str(exit_): round(calibration.power(exit_), DIGITS) for exit_ in policy.config.exits},
        "corrections": _corrections(policy),
        "wait_ms": round(policy.predictor.wait_ms, DIGITS),
        "probe_credit_ms": round(policy.probe_credit_ms, DIGITS),
    }


def _arm(policy: Goodput, arm: Arm) -> dict[str, Any]:
    rule = None if arm.rule is None else policy.config.rules[arm.rule]
    told = {"rule": rule_name(rule), "lengths": list(arm.lengths)}
    return told | _rounded({"tokens": arm.tokens, "round_ms": arm.round_ms, "tokens_per_second": arm.goodput})


def _corrections(policy: Goodput) -> dict[str, dict[str, float]]:
    """Real over profiled time: by kind of pass, then by rows of the batch."""
    kinds = {"plain": "verify, nothing drafted", "wide": "verify", "rest": "rest"}
    kinds |= {"draft": "draft"} | {
        f"draft {number}": f"draft, {rule_name(rule)}" for number, rule in enumerate(policy.config.rules)
    }
    rows = [1 << bit for bit in range(policy.config.max_rows.bit_length())]
    return {
        name: {str(number): round(policy.predictor.ratio(kind, number), DIGITS) for number in rows}
        for kind, name in kinds.items()
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in values.items()}
