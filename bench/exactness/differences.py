"""Where two texts part, and whether it is a tie: two scores so close that only rounding tells them apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from model.sampling import noisy_scores
from protocol.request import GenerateRequest
from targets.model import ForwardRow, TargetModel

TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token that differs in one case, by the number of its prompt.

    gap: between the plain loop's two best scores there.
    """

    prompt: str
    index: int
    gap: float


def first_difference(text: Sequence[int], tokens: Sequence[int]) -> int | None:
    for index, (expected, actual) in enumerate(itertools.zip_longest(text, tokens)):
        if expected != actual:
            return index
    return None


def score_gap(model: TargetModel, request: GenerateRequest, text: Sequence[int]) -> float:
    """Distance of the two best scores for the token behind prompt + text."""
    context = [*request.prompt_ids, *text]
    model.ledger.open(0)
    assert model.ledger.reserve(0, len(context))
    logits = model.forward([ForwardRow(0, 0, context, num_logits=1)])
    model.ledger.free(0)
    best = noisy_scores(logits, [request.sampling], [len(context)]).topk(2).values[0]
    return float(best[0] - best[1])
