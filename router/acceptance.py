"""How likely a drafted token is accepted: by depth rule and position in the window, learned from what comes back.

The estimate is a hazard: of the windows whose tokens before a position were all accepted, the share whose token there
was accepted too. A window tells of its position n only when n tokens were planned and the first n - 1 accepted, so what
the plan's end cut off counts neither way (censoring). What a draft left out because it had lost confidence counts as
refused: such ends are no accident, they come where tokens are doubtful, and without them what is left looks too good.
For the same reason the share of drafts that get as far as a position is kept, which is what they cost. A position that
little is known of leans on the one before it, and a rule that little is known of on the best known rule, in log odds by
the layers between them.

Full information: a probe tells what every exit would have picked at the tokens committed lately. Cut into windows as
drafting would have cut them, stops included, that is an observation of every rule, without having run it.

Old evidence fades. What other rules were told of while text was easier or harder counts less once the rule in use
shows that it is otherwise now: a rule that was played for the hard beginning of a text is not given up for that. When
lately accepted tokens contradict the estimate, by more standard deviations than chance gives, the text has changed
and all of it fades at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protocol.outcome import Probe
from protocol.plan import DepthRule

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """One draft's fate: `planned` tokens were wanted, so many drafted, and the first `accepted` of them right."""

    accepted: int
    planned: int
    drafted: int


@dataclass(frozen=True, slots=True)
class AcceptanceConfig:
    """half_life: windows after which evidence counts half; with batches, at least half_life_rounds rounds.

    prior: acceptance at the shallowest exit before anything is known, worth prior_tokens tokens; per_layer: what a
    layer adds in log odds. lean: tokens that the position before is worth. alarm: standard deviations.
    bursts: variance over that of independent tokens, for text is easy or hard for a while; drift: what all rows of a
    batch may be off together, as a share of what is expected. own_failures: expected
    refusals that a sequence must have seen before its own count half. kin_tokens: that the best known rule is worth as
    evidence of another. doubt: power of the change of a rule's refusals, beyond a factor of exp(steady), by which the
    evidence of all others fades.
    """

    half_life: float = 150.0
    half_life_rounds: float = 30.0
    unseen_half_life: float = 400.0
    recent_half_life: float = 16.0
    own_half_life: float = 40.0
    prior: float = 0.65
    per_layer: float = 0.06
    prior_tokens: float = 4.0
    lean: float = 6.0
    alarm: float = 3
    drift: float = 0.06
    bursts: float = 1.5
    alarm_keeps: float = 0.05
    own_failures: float = 30.0
    kin_tokens: float = 16.0
    doubt: float = 2.0
    steady: float = 0.1


@dataclass(slots=True)
class _Rule:
    """By position, faded: accepted of those reached, drafted of those planned. recent, expected, variance: accepted
    tokens of the last few windows.
    """

    accepted: Floats
    reached: Floats
    drafted: Floats
    planned: Floats
    recent: float = field(default=0.0, init=False)
    expected: float = field(default=0.0, init=False)
    variance: float = field(default=0.0, init=False)
    hazards: Floats | None = field(default=None, init=False)

    def fade(self, share: float) -> None:
        self.accepted = share * self.accepted
        self.reached = share * self.reached
        self.drafted = share * self.drafted
        self.planned = share * self.planned
        self.hazards = None


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
        self._rules = [_Rule(*np.zeros((4, self.length))) for _ in self.rules]

    def hazards(self, rule: int) -> Floats:
        """[length]: probability that a token is accepted, given that all before it were."""
        state = self._rules[rule]
        if state.hazards is None:
            state.hazards = self._shares(state.accepted, state.reached, *self._prior(rule))
        return state.hazards

    def drafted(self, rule: int) -> Floats:
        """[length]: share of the drafts that get as far as a position before they are stopped.

        Where none was planned so far they go on being stopped as often as at the position before.
        """
        state = self._rules[rule]
        shares, share, goes_on = [], 1.0, 1.0
        for drafted, planned in zip(state.drafted.tolist(), state.planned.tolist(), strict=True):
            goes_on = min((drafted + self.config.lean * goes_on) / (share * planned + self.config.lean), 1.0)
            share *= goes_on
            shares.append(share)
        return np.asarray(shares)

    def hopeful(self, rule: int, trust: float = 1.0) -> Floats:
        """Hazards one standard deviation above what is known: what it takes to give a rule up.

        trust: what the evidence counts, less than 1 if it is of other text.
        """
        state = self._rules[rule]
        accepted, reached = trust * state.accepted, trust * state.reached
        hazards = self._shares(accepted, reached, *self._prior(rule))
        spread = np.sqrt(self.config.bursts * hazards * (1 - hazards) / (reached + self.config.prior_tokens))
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
        """A few rounds: (sequence id, its window) for every row that was drafted for under this rule."""
        hazards, known = self.hazards(rule), float(self._rules[rule].reached[0])
        refusals = [0.0, *np.cumsum(1 - hazards).tolist()]
        for sequence_id, window in windows:
            self._own_evidence(self._own.setdefault(sequence_id, _Own()), refusals, window)
        self._add(rule, [window for _, window in windows], num_rows=len({sequence_id for sequence_id, _ in windows}))
        # What all sequences had in common is in the hazards now, and no longer what sets one apart.
        moved = float((1 - self.hazards(rule)[0]) / (1 - hazards[0]))
        for own in self._own.values():
            own.expected *= moved
        self._doubt_others(rule, known, moved)

    def tell(self, probe: Probe, exits: Sequence[int], known: int | None, least: Sequence[float]) -> None:
        """A probe of one sequence, with calibrated confidences. exits: the drafter's. known: the rule that drafted
        these tokens, which its own windows told of already. least: by rule, the survival at which a draft is stopped.
        """
        for number, rule in enumerate(self.rules):
            if number != known and set(rule.exits) <= set(exits):
                windows = windows_of(*would_match(probe, exits, rule), self.length, least[number])
                self._add(number, windows, num_rows=len(windows))

    def keep(self, sequence_ids: Iterable[int]) -> None:
        """Forget the sequences that are not among these."""
        keep = set(sequence_ids)
        if len(self._own) > 2 * len(keep) + 8:
            self._own = {number: own for number, own in self._own.items() if number in keep}

    def leave(self) -> None:
        """Forget all sequences, not what they told of their target."""
        self._own.clear()

    def _add(self, rule: int, windows: Sequence[Window], num_rows: int) -> None:
        """num_rows: that these windows came from side by side."""
        if not windows:
            return
        state, config = self._rules[rule], self.config
        hazards = self.hazards(rule)
        fade = _fade(len(windows), max(config.half_life, config.half_life_rounds * num_rows))
        accepted, reached = counts(windows, self.length)
        state.fade(fade)
        state.accepted += accepted
        state.reached += reached
        state.drafted += longer([window.drafted for window in windows], self.length)
        state.planned += longer([window.planned for window in windows], self.length)
        recent = _fade(len(windows), max(config.recent_half_life, 2.0 * len(windows)))
        state.recent = recent * state.recent + float(accepted.sum())
        state.expected = recent * state.expected + float(reached @ hazards)
        state.variance = recent * state.variance + float(reached @ (hazards * (1 - hazards)))
        self._fade_others(rule, _fade(len(windows), max(config.unseen_half_life, 8.0 * len(windows))))
        drift = config.drift * state.expected
        if abs(state.recent - state.expected) > config.alarm * math.sqrt(config.bursts * state.variance + drift**2 + 1):
            self._forget()

    def _doubt_others(self, rule: int, known: float, moved: float) -> None:
        """A rule that was known, by so many tokens, and now does better or worse: the text is not what others met."""
        config = self.config
        doubt = config.doubt * known / (known + config.kin_tokens)
        self._fade_others(rule, math.exp(-doubt * max(abs(math.log(moved)) - config.steady, 0.0)))

    def _fade_others(self, rule: int, share: float) -> None:
        for number, other in enumerate(self._rules):
            if number != rule:
                other.fade(share)

    def _forget(self) -> None:
        self.num_alarms += 1
        for state in self._rules:
            state.fade(min(1.0, self.config.alarm_keeps + 4.0 / max(float(state.reached[0]), 4.0)))
            state.recent = state.expected = state.variance = 0.0
        self._own.clear()

    def _prior(self, rule: int) -> tuple[float, float]:
        """Of the first position, from the rule that most is known of, moved by the layers between; and its weight."""
        config = self.config
        known = max(range(len(self._rules)), key=lambda number: float(self._rules[number].reached[0]))
        best = self._rules[known]
        start = _sigmoid(_logit(config.prior) + config.per_layer * (_depth(self.rules[known]) - _depth(self.rules[0])))
        if rule == known:
            return start, config.prior_tokens
        weight = config.prior_tokens
        rate = (float(best.accepted[0]) + weight * start) / (float(best.reached[0]) + weight)
        offset = config.per_layer * (_depth(self.rules[rule]) - _depth(self.rules[known]))
        return _sigmoid(_logit(rate) + offset), config.kin_tokens

    def _shares(self, numbers: Floats, of: Floats, prior: float, weight: float) -> Floats:
        shares, before = [], prior
        for number, total in zip(numbers.tolist(), of.tolist(), strict=True):
            before = (number + weight * before) / (total + weight)
            weight = self.config.lean
            shares.append(before)
        return np.asarray(shares)

    def _own_evidence(self, own: _Own, refusals: Sequence[float], window: Window) -> None:
        """refusals: expected of a window's first 0, 1, 2 ... tokens."""
        fade = _fade(1, self.config.own_half_life)
        reached = min(window.accepted + 1, window.planned)
        own.refused = fade * own.refused + (window.planned > window.accepted)
        own.expected = fade * own.expected + refusals[reached]


def counts(windows: Sequence[Window], length: int) -> tuple[Floats, Floats]:
    """Accepted and reached tokens by position, [length] each."""
    accepted = longer([window.accepted for window in windows], length)
    return accepted, longer([min(window.accepted + 1, window.planned) for window in windows], length)


def longer(numbers: Sequence[int], length: int) -> Floats:
    """[length]: how many of the numbers are larger than each position."""
    found = np.bincount(numbers, minlength=length + 1)[: length + 1]
    above: Floats = len(numbers) - np.cumsum(found)[:length].astype(np.float64)
    return above


def would_match(probe: Probe, exits: Sequence[int], rule: DepthRule) -> tuple[list[bool], list[float]]:
    """Whether the rule would have picked each of the committed tokens that the probe tells of, and its confidences."""
    rungs = [list(exits).index(exit_) for exit_ in rule.exits]
    taken = []
    for position in range(len(probe.matches[0])):
        passed = (
            rung
            for rung, threshold in zip(rungs, rule.thresholds, strict=False)
            if probe.confidences[rung][position] > threshold
        )
        taken.append((next(passed, rungs[-1]), position))
    return [probe.matches[r][p] for r, p in taken], [probe.confidences[r][p] for r, p in taken]


def windows_of(matches: Sequence[bool], confidences: Sequence[float], length: int, least: float = 0.0) -> list[Window]:
    """The windows that drafting `length` tokens at a time would have made of these tokens, the last one cut off.

    A draft is stopped behind the token at which its product of confidences is no longer above `least`. What it would
    have drafted behind a wrong token nobody knows; it is taken to be as sure of that as of the wrong one.
    """
    windows, start = [], 0
    while start < len(matches):
        room = min(length, len(matches) - start)
        run, drafted, product = 0, 0, 1.0
        while drafted < length and start + run < len(matches):
            drafted += 1
            product *= confidences[start + run]
            run += run == drafted - 1 and matches[start + run]
            if product <= least:
                break
        ended = run < min(drafted, room) or product <= least
        windows.append(Window(run, length if ended else room, drafted))
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
