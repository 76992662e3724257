"""The default policy: the arm with the most expected committed tokens per second, from what was measured and learned.

    digest what rounds brought -> arms (each depth rule's best budget, and off) -> choice, with hysteresis -> plan

Decisions are made every few rounds and whenever the batch outgrows the last one; in between a plan is kept, cut where
sequences end, and those that join get the usual length. While drafting, the pool's confidence ends a draft that no
longer pays (the floor) and what is not worth verifying is cut off (prune). Probes, within a share of the time, keep the
arms that are not played known, off included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from protocol.draft import DraftBlock
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan, SequenceView
from router.acceptance import Acceptance, AcceptanceConfig
from router.cadence import Cadence
from router.choose import Arm, Floats, best, keep_or_switch, off, survivals
from router.confidence import worth
from router.costs import CostCurves
from router.forecast import Forecast, follow
from router.lags import Lags
from router.learner import Learner
from router.predict import Predictor
from router.probing import Probing
from router.tables import tables
from router.trials import Retries, Trials

NEXT = 0.9  # acceptance of one more token, where all before it are
TRIAL = 3  # tokens of a draft in a trial
NEAR = 0.75  # of the best arm's goodput: a rule is played once, to see what it takes
NEWS = 0.02  # what evidence about other text counts in a trial
HORIZON = 100.0  # rounds over which catching up is paid back, at most
YOUNG = 3  # rounds for which a decision stands, though the batch outgrows it: it takes as long as a short round
LOOK = 8.0  # rounds that a rule is played for to see what it is worth


@dataclass(frozen=True, slots=True)
class GoodputConfig:
    """rules: the depth rules to choose from. length: of the longest draft. max_rows: of the largest batch.

    every: rounds of a lone sequence between digests at least; decisions are made every other time, every time where
    digests are rare, at once when the text or the batch changed. hysteresis: the gain that turning on or off must
    promise; inertia: that of another rule, for layers that lag have to catch up. stretch: how much further than planned
    the draft of a lone sequence may go while it is confident. evidence: drafts that a digest learns from, for each
    costs time.
    probe_share: of the time, for probes; 0 turns full information off. linked: drafts come over a network link.
    """

    rules: tuple[DepthRule, ...]
    exits: tuple[int, ...]
    length: int = 12
    max_rows: int = 32
    every: int = 12
    hysteresis: float = 0.03
    inertia: float = 0.04
    stretch: float = 1.5
    evidence: int = 24
    probe_share: float = 0.01
    probe_tokens: int = 8
    linked: bool = False
    acceptance: AcceptanceConfig = field(default_factory=AcceptanceConfig)


class Goodput:
    """Of one target. Not thread-safe: the engine's thread owns it."""

    def __init__(self, curves: CostCurves, config: GoodputConfig) -> None:
        """Raises ConfigError for curves without a drafter."""
        self.config = config
        self.predictor = Predictor(tables(curves, config.rules, config.length, config.max_rows), config.linked)
        self.acceptance = Acceptance(config.rules, config.length, config.acceptance)
        self.arms: tuple[Arm, ...] = ()
        self.arm: Arm | None = None  # the choice
        self.forecast = Forecast()
        self._lengths: dict[int, int] = {}
        self._usual = 0  # length for a sequence that came since the last decision
        self._num_rows = 0  # of the last decision
        self._overlap = ""
        self._num_digests = 0  # since the last decision
        self._age = 0  # rounds of the last decision
        self._looks = False  # a rule is played to see what it takes
        self._tried: set[tuple[int | None, int]] = set()  # such rules, by size of batch
        self._believed = 0.0  # tokens per second to be had for all that is known: what time is worth
        self._floor = 0.0
        self.kept = 0.0  # product of confidences below which a token is not worth verifying
        self._least = [0.0] * len(config.rules)  # survival at which a draft is stopped
        self._outcomes: list[RoundOutcome] = []
        self._lags = Lags(curves, config.exits)
        self._ends = [config.exits.index(rule.exits[-1]) for rule in config.rules]
        self._behind: Sequence[float] = ()  # by exit: ms for the batch to catch up, at the last decision
        self._trials = Trials()
        self._retries = Retries()
        self._cadence = Cadence(config.every)
        cost = 4 * float(self.predictor.tables.steps[-1][1].mean())
        self._probing = Probing(config.probe_share, config.probe_tokens, cost)
        self._learner = Learner(
            config.rules, config.exits, self.predictor, self.acceptance, self._probing, config.evidence
        )
        self.calibration = self._learner.calibration

    def opening(self) -> DepthRule | None:
        if self.arm is None or self.arm.rule is not None:
            return self.config.rules[(self.arm and self.arm.rule) or 0]
        return self._widest if self._probing.affordable else None

    def plan(self, view: BatchView) -> Plan:
        rows = view.sequences
        if not rows:
            return Plan(None, ())
        alarms = self.acceptance.num_alarms
        self._age += 1
        if self._cadence.is_due(len(rows), self._trials.trying):
            self._digest()
            self._stop()
            self._num_digests += 1
        if (
            self._num_digests >= (1 if self._trials.trying or self._looks or self._cadence.is_rare else 2)
            or self.acceptance.num_alarms > alarms
            or self._outgrown(view)
        ):
            self._decide(view)
        lengths = tuple(
            min(self._lengths.get(sequence.id, self._usual), sequence.remaining - 1) if sequence.drafts else 0
            for sequence in view.sequences
        )
        probes = self._probing.choose(view.sequences)
        self._lags.drafted([view.sequences[row] for row in probes], self.config.exits[-1])
        rule = self.arm.rule if self.arm else None
        depth = self.config.rules[rule] if rule is not None else self._widest
        drafting = depth if any(lengths) or probes else None
        return Plan(drafting, lengths, floor=self._floor, probes=probes, overlap=view.overlap)

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        own = plan.own or (None,) * len(drafts)  # what a request asked for itself is not cut
        return [
            0 if draft is None else worth(draft.confidences, self.kept) if asked is None else len(draft.tokens)
            for draft, asked in zip(drafts, own, strict=True)
        ]

    def observe(self, outcome: RoundOutcome) -> None:
        self._outcomes.append(outcome)
        self._cadence.observe(outcome)
        if outcome.rows:
            self._trials.pass_round([row.id for row in outcome.rows if row.exits])

    def restart(self) -> None:
        """Other sequences come, maybe under the names of earlier ones: forget those, keep what was learned."""
        self._digest()
        self.acceptance.leave()
        self._trials.forget()
        self._lags.leave()
        self._lengths = {}
        self._probing.keep(())

    @property
    def probe_credit_ms(self) -> float:
        """Time that may go into probes now."""
        return self._probing.credit_ms

    def played(self) -> dict[str, float]:
        """Shares of the rounds since the last time that were played so: "depth/longest length", or "off"."""
        played, self._learner.played = self._learner.played, Counter()
        return {name: count / played.total() for name, count in played.most_common()}

    @property
    def _rules(self) -> range:
        return range(len(self.config.rules))

    @property
    def _widest(self) -> DepthRule:
        return DepthRule(self.config.exits[-1:])

    def _outgrown(self, view: BatchView) -> bool:
        """Whether it grew by a quarter or halved since the last decision, is made of others altogether (beginnings are
        when another rule costs least), or overlaps in another way.
        """
        num_rows = len(view.sequences)
        resized = num_rows - self._num_rows > num_rows // 4 or 2 * num_rows <= self._num_rows
        strange = not any(sequence.id in self._lengths for sequence in view.sequences)
        changed = resized or strange or view.overlap != self._overlap
        return self.arm is None or (changed and self._age >= YOUNG)

    def _decide(self, view: BatchView) -> None:
        """Looks at every arm; sets the choice, a length for every sequence and the floor."""
        sequences = view.sequences
        self._note_lags(sequences)
        context = sum(sequence.num_tokens for sequence in sequences) / len(sequences)
        room = [min(self.config.length, sequence.remaining - 1) if sequence.drafts else 0 for sequence in sequences]
        odds = [self.acceptance.odds(sequence.id) for sequence in sequences]
        arms = [off(self.predictor, len(sequences), context)]
        if any(room):
            arms += self._best(view, [self.acceptance.hazards(rule) for rule in self._rules], odds, room)
        self.arms = tuple(arms)
        self._believed = max(arm.goodput for arm in arms)
        untried = self._untried(view)
        chosen = untried or keep_or_switch(self.arm, self.arms, self.config.hysteresis, self.config.inertia)
        if untried is None and chosen.rule is not None:
            chosen = self._retry(chosen, view, odds, room)
        self._looks = chosen is untried or chosen not in arms
        if chosen.rule is None and any(room):
            resting = self.arm is not None and self.arm.rule is None
            settled = view.num_prefilling <= len(sequences) // 4
            if not resting:
                chosen = self._hope(chosen, view, odds, room, 1.0)
            elif settled and self._trials.due([sequence.id for sequence in sequences]):
                chosen = self._hope(chosen, view, odds, [min(limit, TRIAL) for limit in room], NEWS)
        self._trials.decide(chosen.rule is not None, chosen not in arms)
        if self.arm is not None and chosen.rule != self.arm.rule:
            self._cadence.calm = 0
        known = self._lengths if self.arm is not None and chosen.rule == self.arm.rule else {}
        self.arm = chosen
        self._num_rows, self._overlap = len(sequences), view.overlap
        self._num_digests = self._age = 0
        stretch = self._stop()
        lengths = {
            sequence.id: min(int(stretch * length + 0.5), limit)
            for sequence, length, limit in zip(sequences, self.arm.lengths, room, strict=True)
        }
        self._usual = int(median(lengths.values()))
        self._lengths = (known if len(known) <= 2 * len(lengths) + 8 else {}) | lengths  # lanes take turns

    def _best(
        self,
        view: BatchView,
        hazards: Sequence[Floats],
        odds: Sequence[float],
        room: Sequence[int],
        horizon: float = HORIZON,
    ) -> list[Arm]:
        """Of each rule. horizon: rounds for which it would be played, at most."""
        context = sum(sequence.num_tokens for sequence in view.sequences) / len(view.sequences)
        survival = survivals(np.stack(hazards), odds, room)
        drafted = np.stack([self.acceptance.drafted(rule) for rule in self._rules])
        exposed = self.predictor.exposed(view.overlap, len(view.sequences))
        return best(self.predictor, survival, context, self._catch_up_ms(view, horizon), drafted, exposed)

    def _untried(self, view: BatchView) -> Arm | None:
        """A rule that is not far from the best by a profile that no round has confirmed yet, and a hiccup may be in.

        Once for batches of a size, whatever its rounds tell: drafts that were at hand tell nothing of what they took.
        """
        num_rows, now, later = len(view.sequences), self._catch_up_ms(view, LOOK), self._catch_up_ms(view, HORIZON)
        for arm in self.arms:
            key = (arm.rule, num_rows.bit_length())
            if arm.rule is None or key in self._tried or self.predictor.is_tried(arm.rule, num_rows):
                continue
            look_ms = arm.round_ms + now[arm.rule] - later[arm.rule]
            if 1e3 * arm.tokens / look_ms >= NEAR * self._believed:
                self._tried.add(key)
                return arm
        return None

    def _retry(self, chosen: Arm, view: BatchView, odds: Sequence[float], room: Sequence[int]) -> Arm:
        """The choice, or now and then a rule that might beat it for all that is known: what is not played is soon
        believed to be worse than it is.
        """
        if not self._retries.due(chosen.rule):
            return chosen
        room = [min(limit, 2 * TRIAL) for limit in room]
        arms = self._best(view, [self.acceptance.hopeful(rule) for rule in self._rules], odds, room, LOOK)
        hope = max((arm for arm in arms if arm.rule != chosen.rule), key=lambda arm: arm.goodput, default=chosen)
        if hope is chosen or hope.goodput <= chosen.goodput * (1 + self.config.inertia):
            return chosen
        self._retries.begin(hope.rule)
        return hope

    def _hope(self, chosen: Arm, view: BatchView, odds: Sequence[float], room: Sequence[int], trust: float) -> Arm:
        """Off, unless a rule might beat it for all that is known: off brings no evidence, so it takes certainty. The
        rule in use is not left for another one that has but more to hope for.
        """
        arms = self._best(view, [self.acceptance.hopeful(rule, trust) for rule in self._rules], odds, room)
        hopes = [arm for arm in arms if arm.goodput > chosen.goodput]
        same = [arm for arm in hopes if self.arm is not None and arm.rule == self.arm.rule]
        return max(same or hopes, key=lambda arm: arm.goodput, default=chosen)

    def _stop(self) -> float:
        """Sets the survival at which drafting on does not pay, and the floor; how far drafts may go beyond the plan."""
        chosen = self.arm
        for arm in self.arms:
            if arm.rule is not None:
                self._least[arm.rule] = self._believed / 1e3 * (arm.step_ms + arm.token_ms) / NEXT
        if chosen is None or chosen.rule is None:
            self._floor = self.kept = 0.0
            return 1.0
        exit_ = self.config.rules[chosen.rule].exits[-1]
        self.kept = self.calibration.floor(exit_, self._believed / 1e3 * chosen.token_ms)
        self._floor = self.calibration.floor(exit_, self._least[chosen.rule])
        return self.config.stretch if len(chosen.lengths) == 1 else 1.0  # in a batch the others would wait for it

    def _note_lags(self, sequences: Sequence[SequenceView]) -> None:
        """What the rule in use has drafted for, which it has since the last decision, and what each lacks."""
        self._lags.keep(sequences)
        if self.arm is not None and self.arm.rule is not None:
            exit_ = self.config.rules[self.arm.rule].exits[-1]
            self._lags.drafted([one for one in sequences if self._lengths.get(one.id, self._usual)], exit_)
        self._behind = self._lags.catch_up_ms(sequences)

    def _catch_up_ms(self, view: BatchView, most: float) -> list[float]:
        """By rule: what showing the pool's layers what they have not seen costs, spread over the rounds that come, at
        most so many.
        """
        left = sum(sequence.remaining for sequence in view.sequences) / len(view.sequences)
        rounds = min(max(left / 2, 1.0), most)
        return [self._behind[exit_] / rounds for exit_ in self._ends]

    def _digest(self) -> None:
        """Learns from the rounds since the last time."""
        outcomes, self._outcomes = self._outcomes, []
        alarms = self.acceptance.num_alarms
        made = self._learner.digest(outcomes, self._least)
        if made is not None and self.arm is not None:
            self.forecast = follow(self.forecast, self.arm.goodput, made)
        drafts = self.arm is not None and self.arm.rule is not None
        calm = drafts and not self._looks and not self._trials.trying and self.acceptance.num_alarms == alarms
        self._cadence.digested(changed=not calm)
