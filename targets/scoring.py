"""What a row of a pass asks of its logits beyond a pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import DecoderConfig
from model.logit_rules import adjusted
from protocol.logit_rules import LogitRules
from protocol.request import GenerateRequest

if TYPE_CHECKING:
    from targets.model import ForwardRow


@dataclass(frozen=True, slots=True)
class Scoring:
    """tokens: what stands before the row's last place, and maybe more; the prompt comes first."""

    rules: LogitRules
    num_prompt: int
    tokens: Sequence[int] = field(repr=False)


def scoring(request: GenerateRequest, committed: Sequence[int], drafted: Sequence[int] = ()) -> Scoring | None:
    """None for a row that asks for nothing, so that it costs nothing. committed: tokens, the prompt first."""
    num_prompt = len(request.prompt_ids)
    if not request.rules.acts_behind(len(committed) - num_prompt):
        return None
    return Scoring(request.rules, num_prompt, [*committed, *drafted])


@torch.inference_mode()
def apply_rules(logits: Tensor, rows: Sequence[ForwardRow], positions: Sequence[int], config: DecoderConfig) -> None:
    """Changes the logits of rows with rules in place.

    logits: [sum of num_logits, columns] float32. positions: of each place; so many tokens stand before it.
    """
    place = 0
    for row in rows:
        if (asked := row.scoring) is not None:
            tokens = torch.tensor(asked.tokens, dtype=torch.int64, device=logits.device)
            prompt, text = tokens[: asked.num_prompt], tokens[asked.num_prompt :]
            for index in range(place, place + row.num_logits):
                before = text[: positions[index] - asked.num_prompt]
                whole = _by_token(logits[index], config)
                logits[index] = _by_column(adjusted(whole, asked.rules, prompt, before), config)
        place += row.num_logits


def _by_token(logits: Tensor, config: DecoderConfig) -> Tensor:
    """[vocab_size]: the columns of a trimmed head at their tokens; the tokens that it lacks are never picked."""
    if not config.head_token_ids:
        return logits
    whole = logits.new_full((config.vocab_size,), -float("inf"))
    whole[list(config.head_token_ids)] = logits
    return whole


def _by_column(logits: Tensor, config: DecoderConfig) -> Tensor:
    return logits[list(config.head_token_ids)] if config.head_token_ids else logits
