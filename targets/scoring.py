"""What a row of a pass asks of its logits beyond a pick: rules that change them, and their logprobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import DecoderConfig
from model.logit_rules import adjust, count
from model.sampling import NO_PICK
from protocol.logit_rules import Ruled, TokenLogprobs
from protocol.request import GenerateRequest
from targets.grammar import Constraint, Masks
from targets.refusals import banned_columns, head_tokens

if TYPE_CHECKING:
    from targets.model import ForwardRow


@dataclass(frozen=True, slots=True)
class Scoring:
    """ruled: the text before the row's first place; None without rules. drafted: what stands before its last place
    behind that, and maybe more.

    num_top: tokens to tell at each place; None: no logprobs. masks: what the row's grammar allows, by place.
    """

    ruled: Ruled | None = None
    num_top: int | None = None
    masks: Masks | None = field(default=None, repr=False)
    drafted: Sequence[int] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Picks:
    """token_ids: of each place, or NO_PICK. logprobs: of the picks at places that ask for them."""

    token_ids: list[int]
    logprobs: Mapping[int, TokenLogprobs] = field(default_factory=dict)


def scoring(
    request: GenerateRequest,
    committed: Sequence[int],
    drafted: Sequence[int] = (),
    constraint: Constraint | None = None,
) -> Scoring | None:
    """None for a row that asks for nothing, so that it costs nothing. committed: tokens, the prompt first."""
    num_prompt = len(request.prompt_ids)
    masks = constraint.masks(committed[num_prompt:], drafted) if constraint else None
    ruled = request.rules.over(committed, num_prompt)
    if ruled is None and masks is None and request.logprobs is None:
        return None
    return Scoring(ruled, request.logprobs, masks, drafted)


def telling(request: GenerateRequest) -> Scoring:
    """For a row inside a prompt whose logprobs are asked for."""
    return Scoring(num_top=request.logprobs)


def standing(rows: Sequence[ForwardRow], picks: Sequence[int]) -> list[int]:
    """The tokens at the places of a pass: the picks, or what is given there."""
    tokens, first = list(picks), 0
    for row in rows:
        tokens[first : first + len(row.given)] = row.given
        first += row.num_logits
    return tokens


@torch.inference_mode()
def apply_rules(logits: Tensor, rows: Sequence[ForwardRow], positions: Sequence[int], config: DecoderConfig) -> None:
    """Changes the logits of rows with rules in place.

    logits: [sum of num_logits, columns] float32. positions: of each place; so many tokens stand before it.
    """
    head = head_tokens(config)
    for asked, places in _asking(rows):
        if asked.ruled is not None:
            own = slice(places.start, places.stop)
            before = [position - len(asked.ruled.tokens) for position in positions[own]]
            adjust(logits[own], count(asked.ruled, head), asked.drafted, before)
        if asked.masks is not None:
            for place, mask in zip(places, asked.masks, strict=False):
                logits[place].masked_fill_(banned_columns(head, mask.data).to(logits.device), -float("inf"))


@torch.inference_mode()
def raw_logprobs(logits: Tensor, rows: Sequence[ForwardRow], config: DecoderConfig) -> dict[int, tuple[Tensor, int]]:
    """Of each place that asks for them: the logprobs of all tokens, and how many of them are told."""
    return {
        place: (_by_token(logits[place], config).log_softmax(-1), asked.num_top)
        for asked, places in _asking(rows)
        if asked.num_top is not None
        for place in places
    }


@torch.inference_mode()
def logprobs(raw: Mapping[int, tuple[Tensor, int]], picks: Sequence[int]) -> dict[int, TokenLogprobs]:
    told = {}
    for place, (whole, num_top) in raw.items():
        if picks[place] != NO_PICK:
            values, tokens = whole.topk(min(num_top, len(whole)))
            top = zip(tokens.tolist(), values.tolist(), strict=True)
            told[place] = TokenLogprobs(whole[picks[place]].item(), tuple(top))
    return told


def _asking(rows: Sequence[ForwardRow]) -> Iterator[tuple[Scoring, range]]:
    """What rows ask, and their places."""
    first = 0
    for row in rows:
        if row.scoring is not None:
            yield row.scoring, range(first, first + row.num_logits)
        first += row.num_logits


def _by_token(logits: Tensor, config: DecoderConfig) -> Tensor:
    """[vocab_size]: the columns of a trimmed head at their tokens; the tokens that it lacks are never picked."""
    if not config.head_token_ids:
        return logits
    whole = logits.new_full((config.vocab_size,), -float("inf"))
    whole[list(config.head_token_ids)] = logits
    return whole
