"""A target and its pool as numbers: texts whose drafts are right by coupled uniforms, rounds that take what curves say.

One uniform per sequence and position decides: an exit is right there iff the uniform is below its hazard. Confidences
spread around the hazard such that they tell the truth: a token is right with the probability that they say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocol.draft import DraftBlock, DraftStatus
from protocol.outcome import Probe, RoundOutcome, RowOutcome
from protocol.plan import BatchView, Plan, SequenceView
from router.policy import Policy
from router.predict import Predictor

Hazards = Mapping[int, float]  # by exit


@dataclass(slots=True)
class Text:
    """told: positions up to which probes told of it."""

    id: int
    num_tokens: int = 100
    told: int = 100


@dataclass(slots=True)
class Game:
    """true: what rounds take. hazards: of the text, by round. spread: of confidences around them, in [0, 1).

    overlap: how drafts are made; exposed: how much of drafting is waited for then.
    """

    policy: Policy
    true: Predictor
    hazards: Callable[[int], Hazards]
    batch: int
    rng: random.Random
    spread: float = 0.0
    remaining: int = 10_000
    noise: float = 0.0
    overlap: str = ""
    exposed: float = 1.0
    now_ms: float = 0.0
    tokens: int = 0
    turn: int = 0
    plans: list[Plan] = field(default_factory=list)
    probe_ms: float = 0.0
    texts: list[Text] = field(init=False)
    _drawn: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.texts = [Text(index) for index in range(self.batch)]

    def play(self, rounds: int) -> float:
        """Committed tokens per second over these rounds."""
        tokens, now = self.tokens, self.now_ms
        for _ in range(rounds):
            self.round()
        return 1e3 * (self.tokens - tokens) / (self.now_ms - now)

    def round(self) -> None:
        sequences = tuple(SequenceView(text.num_tokens, self.remaining, text.id) for text in self.texts)
        plan = self.policy.plan(BatchView(sequences, overlap=self.overlap))
        self.plans.append(plan)
        hazards = self.hazards(self.turn)
        drafts = [self.draft(text, plan, row, hazards) for row, text in enumerate(self.texts)]
        kept = self.policy.prune(plan, drafts)
        rows = tuple(map(self.row, self.texts, drafts, kept))
        self.policy.observe(self.outcome(plan, rows, drafts))
        self.turn += 1

    def draft(self, text: Text, plan: Plan, row: int, hazards: Hazards) -> DraftBlock | None:
        probes = row in plan.probes
        if plan.depth is None or not (plan.lengths[row] or probes):
            return None
        exits, sure, product = [], [], 1.0
        for position in range(text.num_tokens, text.num_tokens + plan.lengths[row]):
            exit_ = plan.depth.exits[-1]
            exits.append(exit_)
            sure.append(self.look(text, position, exit_, hazards)[1])
            product *= sure[-1]
            if plan.floor and product <= plan.floor:
                break
        probe = self.probe(text, hazards) if probes else None
        return DraftBlock(text.id, text.num_tokens, DraftStatus.OK, (0,) * len(exits), tuple(exits), tuple(sure), probe)

    def probe(self, text: Text, hazards: Hazards) -> Probe:
        positions = range(max(text.told, text.num_tokens - 64), text.num_tokens)
        looks = [[self.look(text, position, exit_, hazards) for position in positions] for exit_ in sorted(hazards)]
        text.told = text.num_tokens
        return Probe(
            positions.start,
            tuple(tuple(right for right, _ in row) for row in looks),
            tuple(tuple(sure for _, sure in row) for row in looks),
        )

    def look(self, text: Text, position: int, exit_: int, hazards: Hazards) -> tuple[bool, float]:
        """Whether an exit is right at a position, and its confidence."""
        key = (text.id, position)
        if key not in self._drawn:
            self._drawn[key] = (self.rng.random(), self.rng.uniform(-1, 1))
        uniform, mood = self._drawn[key]
        rate = hazards[exit_]
        sure = rate + mood * self.spread * min(rate, 1 - rate)
        return uniform < sure, sure

    def row(self, text: Text, draft: DraftBlock | None, kept: int) -> RowOutcome:
        accepted = 0
        if draft is not None:
            hazards = self.hazards(self.turn)
            while accepted < kept and self.look(text, text.num_tokens + accepted, draft.exits[accepted], hazards)[0]:
                accepted += 1
        text.num_tokens += 1 + accepted
        self.tokens += 1 + accepted
        if draft is None:
            return RowOutcome(text.id, 0, 0)
        return RowOutcome(text.id, accepted, kept, draft.exits, draft.confidences, 1, draft.probe)

    def outcome(self, plan: Plan, rows: tuple[RowOutcome, ...], drafts: list[DraftBlock | None]) -> RoundOutcome:
        rules = self.true.tables.rules
        lengths = [len(draft.tokens) if draft else 0 for draft in drafts]
        rule = rules.index(plan.depth) if plan.depth in rules and any(lengths) else None
        context = sum(text.num_tokens for text in self.texts) / self.batch
        draft_ms = 0.0 if rule is None else self.exposed * self.true.draft_ms(rule, lengths)
        probe_ms = sum(0.3 for draft in drafts if draft and draft.probe)
        verify_ms = self.true.verify_ms(self.batch, self.batch + sum(row.num_verified for row in rows), context)
        rest_ms = self.true.other_ms(self.batch, rule is not None)
        shake = 1 + self.rng.uniform(-self.noise, self.noise)
        self.probe_ms += probe_ms
        self.now_ms += (draft_ms + verify_ms + rest_ms) * shake + probe_ms
        return RoundOutcome(
            plan,
            rows,
            context,
            draft_ms * shake + probe_ms,
            verify_ms=verify_ms * shake,
            rest_ms=rest_ms * shake,
        )
