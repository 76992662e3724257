"""A target that drafts for itself: the same model in cheaper weights, over the KV that the target wrote.

A draft replica reads every context again before it can draft. Here nothing is read twice: a draft goes on from the
target's own KV and writes behind the committed tokens, in pages that the round has reserved. The pass that verifies
writes the same places before it reads them, so the text stays the target's (QSpec, Zhao et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from model.decoder import Decoder
from model.logit_rules import Counted, adjust, count
from model.rollout import Rollout
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.errors import ConfigError
from targets.model import TargetModel
from targets.refusals import banned, head_tokens


class OwnDraftClient:
    """A DraftClient that drafts in the engine's thread, at full depth. exits: that one."""

    def __init__(self, model: TargetModel, decoder: Decoder) -> None:
        """decoder: of a sibling of the target (model/siblings.py). Raises ConfigError where KV of one is none of the
        other's.
        """
        made = [(type(one), one.dtype, one.device, one.config.num_layers) for one in (model.decoder, decoder)]
        if made[0] != made[1]:
            raise ConfigError("a drafter on its target's KV needs the target's layers, dtype, device and execution")
        self.decoder, self.exits = decoder, (decoder.config.num_layers,)
        self._model, self._head = model, head_tokens(decoder.config)
        self._newest: dict[int, int] = {}  # committed token of each sequence

    def open(self, request: DraftRequest) -> None:
        """Keeps the newest tokens: a preempted sequence hands over none when it drafts again. The KV has the rest."""
        self._hear(request)

    def draft(self, request: DraftRequest) -> DraftReply:
        self._hear(request)
        drafted = self.decoder.roll_out(list(map(self._rollout, request.rows)), self._model.kv, self.exits[0], None)
        blocks = []
        for row, picks in zip(request.rows, drafted, strict=True):
            tokens, confidences = zip(*picks, strict=True)
            blocks.append(DraftBlock(row.sequence_id, row.base_length, DraftStatus.OK, tokens, confidences))
        return DraftReply(request.incarnation, request.round_id, tuple(blocks))

    def close(self, sequence_ids: Sequence[int]) -> None:
        """The pages belong to the target and stay."""
        for sequence_id in sequence_ids:
            self._newest.pop(sequence_id, None)

    def _hear(self, request: DraftRequest) -> None:
        self._newest |= {row.sequence_id: row.tokens[-1] for row in request.rows if row.tokens}

    def _rollout(self, row: DraftRow) -> Rollout:
        """Every committed token but the newest has KV."""
        slots = self._model.ledger.slots(row.sequence_id)
        ruled = partial(_rule, count(row.ruled, self._head)) if row.ruled else None
        refused = partial(banned, self._head, row.refusal) if row.refusal else None
        drafted = row.length, row.sampling, row.stop_probability, ruled, refused
        return Rollout(slots, row.base_length - 1, (self._newest[row.sequence_id],), *drafted)


@torch.inference_mode()
def _rule(counted: Counted, draft: Sequence[int], logits: Tensor) -> None:
    adjust(logits, counted, draft, [len(draft)])
