"""Grammars are checked after picking. Only a refused pick costs a mask and a second pick.

This is exact: noise belongs to a token, whatever its rivals are, so if the best of all tokens is allowed it is also the
best of the allowed ones. Filters (top-k and the like) weigh tokens against their rivals; with these the mask has to
come first (scoring.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.config import DecoderConfig
from model.decoder import Decoder
from model.logit_rules import Columns
from protocol.draft import Refusal
from protocol.request import SamplingParams

if TYPE_CHECKING:
    from targets.model import ForwardRow


def comes_late(sampling: SamplingParams) -> bool:
    """Whether a grammar can be checked after the picks."""
    return sampling.is_greedy or not sampling.has_filters


def head_tokens(config: DecoderConfig) -> Columns:
    return np.asarray(config.head_token_ids, np.int64) if config.head_token_ids else slice(config.vocab_size)


def banned_columns(head: Columns, allowed: memoryview) -> Tensor:
    """[head_size] bool: the columns of the logits whose tokens are not among these. allowed: a bit for each token."""
    may_come = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")
    return torch.from_numpy(may_come[head] == 0)


def banned(head: Columns, refusal: Refusal, draft: Sequence[int], pick: int) -> Tensor | None:
    """The columns that are banned behind a draft if the grammar refuses this pick; None if it allows the pick."""
    allowed = refusal(draft, pick)
    return None if allowed is None else banned_columns(head, allowed)


@torch.inference_mode()
def allowed_picks(
    decoder: Decoder,
    logits: Tensor,
    rows: Sequence[ForwardRow],
    picks: Sequence[int],
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
) -> list[int]:
    """The picks that the grammars of their rows allow. Behind a row's first pick that differs from its draft nothing is
    checked, since it is never read. picks: from these logits, without grammars.
    """
    made, first = list(picks), 0
    for row in rows:
        if row.refusal:
            _mend(decoder, logits, row, row.refusal, range(first, first + row.num_logits), made, sampling, positions)
        first += row.num_logits
    return made


def _mend(
    decoder: Decoder,
    logits: Tensor,
    row: ForwardRow,
    refusal: Refusal,
    places: range,
    picks: list[int],
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
) -> None:
    """Puts right the picks of one row. places: of the row's picks among all."""
    head, draft = head_tokens(decoder.config), list(row.tokens[len(row.tokens) - row.num_logits + 1 :])
    for index, place in enumerate(places):
        columns = banned(head, refusal, draft[:index], picks[place])
        if columns is not None:
            own = logits[place : place + 1].masked_fill(columns.to(logits.device), -float("inf"))
            (picks[place],) = decoder.pick(own, [sampling[place]], [positions[place]])
        if draft[index : index + 1] != [picks[place]]:
            return
