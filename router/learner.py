"""What rounds brought, digested into what arms are judged by: acceptance, calibration, costs and credit for probes.

    outcomes -> times (all of them) -> windows and probes (the latest, as many as pay) -> fates of single tokens

Each step costs Python in a target's own loop, so only times are taken of every round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from protocol.outcome import Probe, RoundOutcome, RowOutcome
from protocol.plan import DepthRule, Plan
from router.acceptance import Acceptance, Window
from router.confidence import Calibration
from router.predict import Predictor
from router.probing import Probing

Fates = dict[int, tuple[list[float], list[bool]]]  # by exit: confidences of tokens, and whether they were right


class Learner:
    """exits: of the drafter. evidence: drafts that one digest learns from, for each costs time."""

    def __init__(
        self,
        rules: Sequence[DepthRule],
        exits: Sequence[int],
        predictor: Predictor,
        acceptance: Acceptance,
        probing: Probing,
        evidence: int,
    ) -> None:
        self.predictor, self.acceptance, self.probing = predictor, acceptance, probing
        self.calibration = Calibration()
        self.played: Counter[str] = Counter()
        self._exits, self._evidence = tuple(exits), evidence
        self._numbers = {rule: number for number, rule in enumerate(rules)}

    def digest(self, outcomes: Sequence[RoundOutcome], least: Sequence[float]) -> float | None:
        """least: by rule, the survival at which a draft is stopped. Returns the tokens per second that rounds without
        prompts made; None when there were none.
        """
        outcomes = [outcome for outcome in outcomes if self._is_own(outcome)]
        if not outcomes:
            return None
        self._measure(outcomes)
        latest = telling(outcomes, self._evidence)
        self._learn_windows(latest)
        self._learn_probes(latest, least)
        self._learn_fates(latest)
        rows = {row.id for outcome in outcomes[-2:] for row in outcome.rows}  # lanes take turns
        self.acceptance.keep(rows)
        self.probing.keep(rows)
        return realised(outcomes)

    def _is_own(self, outcome: RoundOutcome) -> bool:
        """Whether this drafter's exits answered: a replica with others may step in between plan and draft."""
        return all(
            set(row.exits) <= set(self._exits) and (row.probe is None or len(row.probe.matches) == len(self._exits))
            for row in outcome.rows
        )

    def _measure(self, outcomes: Sequence[RoundOutcome]) -> None:
        rules = [None if o.plan.own or o.plan.depth is None else self._numbers.get(o.plan.depth) for o in outcomes]
        before = self.predictor.elapsed_ms
        self.predictor.observe(list(zip(outcomes, rules, strict=True)))
        self.probing.earn(self.predictor.elapsed_ms - before)
        for outcome, rule in zip(outcomes, rules, strict=True):
            self.played[_name(outcome.plan)] += 1
            if any(row.probe is not None for row in outcome.rows):
                self.probing.pay(self._probe_ms(outcome, rule))

    def _probe_ms(self, outcome: RoundOutcome, rule: int | None) -> float:
        """What a probe took, beyond the draft; as before where prompts rode along, and while nobody knows how much of
        drafting is waited for.
        """
        lengths, overlap = [len(row.exits) for row in outcome.rows], outcome.plan.overlap
        if outcome.num_prefill_tokens or not self.predictor.is_exposed_known(overlap, len(lengths)):
            return self.probing.cost_ms
        exposed = self.predictor.exposed(overlap, len(lengths))
        planned = exposed * self.predictor.draft_ms(rule, lengths) if rule is not None else 0.0
        return outcome.draft_ms - outcome.wait_ms - planned

    def _learn_windows(self, outcomes: Sequence[RoundOutcome]) -> None:
        windows: dict[int, list[tuple[int, Window]]] = {}
        for outcome in outcomes:
            for index, row in enumerate(outcome.rows):
                rule = self._rule_of(outcome, index)
                if rule is not None and row.exits:
                    window = Window(row.accepted, outcome.plan.lengths[index], len(row.exits))
                    windows.setdefault(rule, []).append((row.id, window))
        for rule, own in windows.items():
            self.acceptance.observe(rule, own)

    def _learn_probes(self, outcomes: Sequence[RoundOutcome], least: Sequence[float]) -> None:
        for outcome in outcomes:
            for index, row in enumerate(outcome.rows):
                if row.probe is not None and row.probe.matches and row.probe.matches[0]:
                    drafted = self._rule_of(outcome, index) if row.exits else None
                    self.acceptance.tell(self._calibrated(row.probe), self._exits, drafted, least)

    def _learn_fates(self, outcomes: Sequence[RoundOutcome]) -> None:
        fates: Fates = {exit_: ([], []) for exit_ in self._exits}
        for outcome in outcomes:
            for row in outcome.rows:
                self._add_fates(fates, row)
        for exit_, (sure, right) in fates.items():
            self.calibration.observe(exit_, sure, right)

    def _add_fates(self, fates: Fates, row: RowOutcome) -> None:
        """Tokens whose fate is known: accepted ones, the first refused one, and all that a probe tells of."""
        for position in range(min(row.accepted + 1, row.num_verified)):
            sure, right = fates[row.exits[position]]
            sure.append(row.confidences[position])
            right.append(position < row.accepted)
        if row.probe is not None:
            for exit_, matches, told in zip(self._exits, row.probe.matches, row.probe.confidences, strict=True):
                fates[exit_][0].extend(told)
                fates[exit_][1].extend(matches)

    def _rule_of(self, outcome: RoundOutcome, index: int) -> int | None:
        plan = outcome.plan
        depth = plan.own[index] if plan.own else plan.depth
        return None if depth is None else self._numbers.get(depth)

    def _calibrated(self, probe: Probe) -> Probe:
        powers = [self.calibration.power(exit_) for exit_ in self._exits]
        return replace(
            probe,
            confidences=tuple(
                tuple([confidence**power for confidence in told])
                for power, told in zip(powers, probe.confidences, strict=True)
            ),
        )


def telling(outcomes: Sequence[RoundOutcome], num_rows: int) -> list[RoundOutcome]:
    """The latest rounds that have so many rows together, two at least, and those before them that probed."""
    each = max(len(outcomes[-1].rows), 1)
    first = len(outcomes) - max(num_rows // each, 2)
    return [o for at, o in enumerate(outcomes) if at >= first or any(row.probe is not None for row in o.rows)]


def realised(outcomes: Sequence[RoundOutcome]) -> float | None:
    """Tokens per second of the rounds in which no prompt rode along."""
    steady = [outcome for outcome in outcomes if outcome.rows and not outcome.num_prefill_tokens]
    ms = sum(outcome.draft_ms + outcome.verify_ms + outcome.rest_ms for outcome in steady)
    tokens = sum(len(outcome.rows) + sum(row.accepted for row in outcome.rows) for outcome in steady)
    return 1e3 * tokens / ms if ms > 0 else None


def _name(plan: Plan) -> str:
    if plan.depth is None or not any(plan.lengths):
        return "off"
    exits = plan.depth.exits
    return f"{exits[0] if len(exits) == 1 else 'cascade'}/{max(plan.lengths)}"
