"""What the simulator is told of texts: how often drafts are right, and what is right where they are not.

Texts of the plain loop are gone through token by token: at every position each exit of the drafter says what it would
pick, how sure it is and what comes second, and the target in a pass over the whole text what it would pick at its
early exit, all under the sequence's own noise. So the shares of mistakes that second choices and early picks correct
are known of every exit, whatever was at hand in time in any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.ours import requests
from bench.survey import Told
from drafters.nested import NestedDrafter
from drafters.picks import PassRow, Pick
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from router.simulate_ahead import Choices
from targets import plain
from targets.model import ForwardRow, TargetModel

NAME = -1  # of the sequence in the target's ledger
TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Followed:
    """A text as the models follow it. token_ids: with the prompt; by position from `start` on: picks of each exit, and
    the target's early picks, best first.
    """

    token_ids: TokenIds = field(repr=False)
    start: int
    picks: Sequence[Sequence[Pick]] = field(repr=False)
    early: Sequence[TokenIds] = field(repr=False)

    def told(self) -> list[Told]:
        """By position, then exit: whether it is right, how sure it is."""
        own = zip(*self.picks, strict=True)
        truth = self.token_ids[self.start :]
        return [
            tuple((pick.token == right, pick.confidence) for pick in at) for at, right in zip(own, truth, strict=True)
        ]


def follow(
    model: TargetModel,
    drafter: NestedDrafter,
    prompts: Sequence[TokenIds],
    temperature: float,
    max_tokens: int,
    exit_layer: int,
    kappa: int,
) -> list[Followed]:
    made = []
    for request in requests(prompts, temperature, max_tokens):
        text, start, sampling = plain.generate(model, request).tokens, len(request.prompt_ids), request.sampling
        picks = [drafted(drafter, text, start, exit_, sampling) for exit_ in drafter.exits]
        early = early_picks(model, text, start, exit_layer, kappa, sampling)
        made.append(Followed(tuple(text), start, picks, early))
    return made


def drafted(
    drafter: NestedDrafter, text: Sequence[int], start: int, exit_: int, sampling: SamplingParams
) -> list[Pick]:
    """What one exit would pick at each position from `start` on, all tokens before it being the text's."""
    drafter.open(NAME)
    try:
        reserved = drafter.ledger.reserve(NAME, len(text))
        assert reserved, "the drafter holds one text"
        picks = []
        for length in range(start, len(text)):
            tokens = list(text[drafter.written(NAME) : length])
            row = PassRow(NAME, tokens, length, length - 1, DepthRule((exit_,)), sampling)
            picks += drafter.run([row])[0][:1]
        return picks
    finally:
        drafter.free(NAME)


def early_picks(
    model: TargetModel, text: Sequence[int], start: int, exit_layer: int, kappa: int, sampling: SamplingParams
) -> list[TokenIds]:
    """Of the target at each position from `start` on, in one pass."""
    number = len(text) - start
    model.ledger.open(NAME)
    try:
        reserved = model.ledger.reserve(NAME, len(text))
        assert reserved, "the target holds one text"
        half = model.run_to([ForwardRow(NAME, 0, list(text[:-1]), number)], exit_layer)
        positions = list(range(start, len(text)))
        return model.early_picks(half, range(number), [sampling] * number, positions, kappa)
    finally:
        model.ledger.free(NAME)


def choices_of(texts: Sequence[Followed], exit_number: int, kappa: int) -> Choices:
    """Of drafts that leave at this exit."""
    right, agreed, corrected = 0, 0, 0
    left: list[
        int | None
    ] = []  # of mistakes that the second choice does not correct, the rank of the early pick that does
    for text in texts:
        for truth, pick, early in zip(text.token_ids[text.start :], text.picks[exit_number], text.early, strict=True):
            if pick.token == truth:
                right += 1
                agreed += early[:1] == (truth,)
            elif pick.runner_up == truth:
                corrected += 1
            else:
                left.append(early.index(truth) if truth in early else None)
    wrong = corrected + len(left)
    shares = tuple(left.count(rank) / max(len(left), 1) for rank in range(kappa))
    return Choices(corrected / max(wrong, 1), shares, agreed / max(right, 1))
