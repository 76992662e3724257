"""How likely a drafted token is accepted: by depth rule and position in the window, learned from what comes back.

The estimate is a hazard: the share accepted of the tokens at a position that were verified with everything before
them accepted. A window tells of its position n only when n tokens were verified and the first n - 1 accepted, so what
the window's end cut off counts neither way (censoring). A position that little is known of leans on the one before it,
and a rule that little is known of on the best known rule, in log odds by the layers between them.

Full information: a probe tells what every exit would have picked at the tokens committed lately. Cut into windows as
drafting would have cut them, that is an observation of every rule, without having run it.

Old evidence fades. When lately accepted tokens contradict the estimate, by more standard deviations than chance gives,
the text has changed and all of it fades at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protocol.draft import Probe
from protocol.plan import DepthRule

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """One draft's fate: of `verified` tokens the first `accepted` were right.

    doubt: probability of the first token that was drafted and not verified, which counts as a fraction; None: no such.
    """

    accepted: int
    verified: int
    doubt: float | None = None


@dataclass(frozen=True, slots=True)
class AcceptanceConfig:
    """half_life: windows after which evidence counts half; with batches, at least half_life_rounds rounds.

    prior: acceptance at the shallowest exit before anything is known, worth prior_tokens tokens; per_layer: what a
    layer adds in log odds. lean: tokens that the position before is worth. alarm: standard deviations.
    bursts: variance over that of independent tokens, for text is easy or hard for a while. own_failures: expected
    refusals that a sequence must have seen before its own count half.
    """

    half_life: float = 150.0
    half_life_rounds: float = 20.0
    unseen_half_life: float = 400.0
    recent_half_life: float = 16.0
    own_half_life: float = 40.0
    prior: float = 0.65
    per_layer: float = 0.12
    prior_tokens: float = 4.0
    lean: float = 6.0
    alarm: float = 3.5
    bursts: float = 1.5
    alarm_keeps: float = 0.05
    own_failures: float = 3.0


@dataclass(slots=True)
class _Rule:
    """accepted, reached: by position, faded. recent, expected, variance: accepted tokens of the last few windows."""

    accepted: Floats
    reached: Floats
    recent: float = 0.0
    expected: float = 0.0
    variance: float = 0.0
    hazards: Floats | None = None


@dataclass(slots=True)
class _Own:
    """One sequence's refused tokens against what the rule's hazards expected of it."""

    refused: float = 0.0
    expected: float = 0.0


@dataclass(slots=True)
class Acceptance:
    """Of one target. rules: as numbered by its policy. length: of the longest window."""

    rules: Sequence[DepthRule]
    length: int
    config: AcceptanceConfig = field(default_factory=AcceptanceConfig)
    num_alarms: int = 0
    _rules: list[_Rule] = field(init=False, repr=False)
    _own: dict[int, _Own] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._rules = [_Rule(np.zeros(self.length), np.zeros(self.length)) for _ in self.rules]

    def hazards(self, rule: int) -> Floats:
        """[length]: probability that a token is accepted, given that all before it were."""
        state = self._rules[rule]
        if state.hazards is None:
            state.hazards = self._estimate(state, self._prior(rule))
        return state.hazards

    def hopeful(self, rule: int) -> Floats:
        """Hazards one standard deviation above what is known: what it takes to give a rule up."""
        state, hazards = self._rules[rule], self.hazards(rule)
        spread = np.sqrt(self.config.bursts * hazards * (1 - hazards) / (state.reached + self.config.prior_tokens))
        raised: Floats = np.minimum(hazards + spread, 0.995)
        return raised

    def weight(self, rule: int) -> float:
        """Tokens of evidence, after fading."""
        return float(self._rules[rule].reached.sum())

    def odds(self, sequence_id: int) -> float:
        """How a sequence differs from the others: a factor on its probability of a refusal."""
        own = self._own.get(sequence_id)
        if own is None:
            return 1.0
        weight = self.config.own_failures
        return (own.refused + weight) / (own.expected + weight)

    def observe(self, rule: int, windows: Sequence[tuple[int, Window]]) -> None:
        """One round: (sequence id, its window) for every row that was drafted for under this rule."""
        hazards = self.hazards(rule)
        for sequence_id, window in windows:
            self._own_evidence(self._own.setdefault(sequence_id, _Own()), hazards, window)
        self._add(rule, [window for _, window in windows])
        # What all sequences had in common is in the hazards now, and no longer what sets one apart.
        moved = float((1 - self.hazards(rule)[0]) / (1 - hazards[0]))
        for own in self._own.values():
            own.expected *= moved

    def tell(self, probe: Probe, exits: Sequence[int], known: int | None) -> None:
        """A probe of one sequence. exits: the drafter's. known: the rule that drafted these tokens, which its own
        windows told of already."""
        for number, rule in enumerate(self.rules):
            if number != known and set(rule.exits) <= set(exits):
                self._add(number, windows_of(would_match(probe, exits, rule), self.length))

    def keep(self, sequence_ids: Iterable[int]) -> None:
        """Forget the sequences that are not among these."""
        keep = set(sequence_ids)
        if len(self._own) > 2 * len(keep) + 8:
            self._own = {number: own for number, own in self._own.items() if number in keep}

    def leave(self) -> None:
        """Forget all sequences, not what they told of their target."""
        self._own.clear()

    def _add(self, rule: int, windows: Sequence[Window]) -> None:
        if not windows:
            return
        state, config = self._rules[rule], self.config
        hazards = self.hazards(rule)
        fade = _fade(len(windows), max(config.half_life, config.half_life_rounds * len(windows)))
        accepted, reached = counts(windows, self.length)
        state.accepted = fade * state.accepted + accepted
        state.reached = fade * state.reached + reached
        recent = _fade(len(windows), max(config.recent_half_life, 2.0 * len(windows)))
        state.recent = recent * state.recent + float(accepted.sum())
        state.expected = recent * state.expected + float(reached @ hazards)
        state.variance = recent * state.variance + float(reached @ (hazards * (1 - hazards)))
        state.hazards = None
        self._fade_others(rule, len(windows))
        if abs(state.recent - state.expected) > config.alarm * math.sqrt(config.bursts * state.variance + 1.0):
            self._forget()

    def _fade_others(self, rule: int, num_windows: int) -> None:
        fade = _fade(num_windows, max(self.config.unseen_half_life, 8.0 * num_windows))
        for number, other in enumerate(self._rules):
            if number != rule:
                other.accepted = fade * other.accepted
                other.reached = fade * other.reached
                other.hazards = None

    def _forget(self) -> None:
        self.num_alarms += 1
        for state in self._rules:
            keep = min(1.0, self.config.alarm_keeps + 4.0 / max(float(state.reached[0]), 4.0))
            state.accepted = keep * state.accepted
            state.reached = keep * state.reached
            state.recent = state.expected = state.variance = 0.0
            state.hazards = None
        self._own.clear()

    def _prior(self, rule: int) -> float:
        """Of the first position: from the rule that most is known of, moved by the layers between."""
        config = self.config
        known = max(range(len(self._rules)), key=lambda number: float(self._rules[number].reached[0]))
        best = self._rules[known]
        start = _sigmoid(_logit(config.prior) + config.per_layer * (_depth(self.rules[known]) - _depth(self.rules[0])))
        if rule == known:
            return start
        weight = config.prior_tokens
        rate = (float(best.accepted[0]) + weight * start) / (float(best.reached[0]) + weight)
        return _sigmoid(_logit(rate) + config.per_layer * (_depth(self.rules[rule]) - _depth(self.rules[known])))

    def _estimate(self, state: _Rule, prior: float) -> Floats:
        hazards = np.empty(self.length)
        before, weight = prior, self.config.prior_tokens
        for position in range(self.length):
            before = (state.accepted[position] + weight * before) / (state.reached[position] + weight)
            weight = self.config.lean
            hazards[position] = before
        return hazards

    def _own_evidence(self, own: _Own, hazards: Floats, window: Window) -> None:
        fade = _fade(1, self.config.own_half_life)
        reached = min(window.accepted + 1, window.verified)
        own.refused = fade * own.refused + (window.verified > window.accepted)
        own.expected = fade * own.expected + reached - float(hazards[:reached].sum())


def counts(windows: Sequence[Window], length: int) -> tuple[Floats, Floats]:
    """Accepted and reached tokens by position, [length] each."""
    accepted, reached = np.zeros(length), np.zeros(length)
    for window in windows:
        accepted[: window.accepted] += 1
        reached[: min(window.accepted + 1, window.verified)] += 1
        if window.doubt is not None and window.accepted == window.verified < length:
            accepted[window.verified] += window.doubt
            reached[window.verified] += 1
    return accepted, reached


def would_match(probe: Probe, exits: Sequence[int], rule: DepthRule) -> list[bool]:
    """Whether the rule would have picked each of the committed tokens that the probe tells of."""
    rungs = [list(exits).index(exit_) for exit_ in rule.exits]
    matches = []
    for position in range(len(probe.matches[0])):
        passed = (
            rung
            for rung, threshold in zip(rungs, rule.thresholds, strict=False)
            if probe.confidences[rung][position] > threshold
        )
        matches.append(probe.matches[next(passed, rungs[-1])][position])
    return matches


def windows_of(matches: Sequence[bool], length: int) -> list[Window]:
    """The windows that drafting `length` tokens at a time would have made of these tokens, the last one cut off."""
    windows, start = [], 0
    while start < len(matches):
        run = 0
        while run < length and start + run < len(matches) and matches[start + run]:
            run += 1
        ended = start + run < len(matches) and run < length
        windows.append(Window(run, run + ended))
        start += run + 1
    return windows


def _depth(rule: DepthRule) -> float:
    return sum(rule.exits) / len(rule.exits)


def _fade(num: float, half_life: float) -> float:
    return float(0.5 ** (num / half_life))


def _logit(p: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
