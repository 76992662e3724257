"""The plain loop: one sequence, one token a step. The oracle that every faster loop is compared with."""

from __future__ import annotations

from model.sampling import NO_PICK
from protocol.errors import ModelFault
from protocol.request import GenerateRequest
from targets.model import ForwardRow, TargetModel
from targets.scoring import scoring
from targets.sequence import Sequence


def generate(model: TargetModel, request: GenerateRequest) -> Sequence:
    """The finished sequence. Raises RuntimeError when its pages are not to be had, ModelFault when it has no pick."""
    sequence = Sequence(0, request, model.max_length, constraint=model.constraint(request))
    model.ledger.open(sequence.id)
    try:
        while sequence.finish_reason is None:
            if not model.ledger.reserve(sequence.id, len(sequence.tokens)):
                raise RuntimeError(f"{model.ledger.num_free} free pages do not hold {len(sequence.tokens)} tokens")
            new = sequence.tokens[sequence.computed :]
            asked = scoring(request, sequence.tokens, constraint=sequence.constraint)
            row = ForwardRow(sequence.id, sequence.computed, new, 1, asked)
            picks = model.pick([row], [request.sampling], [len(sequence.tokens)])
            if picks == [NO_PICK]:
                raise ModelFault(f"no token {len(sequence.tokens)}: the model's scores are not numbers")
            sequence.computed = len(sequence.tokens)
            sequence.rounds += sequence.num_generated > 0
            sequence.commit(picks)
    finally:
        model.ledger.free(sequence.id)
    return sequence
