"""A target at work: a decoder, its KV and the page ledger over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from model.batch import CPU, BatchRow, RaggedBatch, build_batch
from model.decoder import Decoder
from model.execution import Execution
from model.kv import PagedKV
from model.load import Progress, WeightFormat, load_decoder
from model.pages import PageLedger
from protocol.draft import Refusal
from protocol.errors import ConfigError, InvalidRequest
from protocol.request import GenerateRequest, SamplingParams
from targets.grammar import Constraint, Grammars
from targets.refusals import allowed_picks
from targets.scoring import Picks, Scoring, apply_rules, logprobs, raw_logprobs, standing


@dataclass(frozen=True, slots=True)
class ForwardRow:
    """New tokens of one sequence at positions [start, start + len(tokens)); logits are wanted of the last ones.

    refusal: by the grammar of its text, of picks behind a part of the tokens after the first place (refusals.py).
    given: the tokens that stand at its places, of a prompt that is told; else empty.
    """

    sequence_id: int
    start: int
    tokens: Sequence[int] = field(repr=False)
    num_logits: int
    scoring: Scoring | None = None
    refusal: Refusal | None = None
    given: Sequence[int] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TargetModel:
    decoder: Decoder
    ledger: PageLedger
    kv: PagedKV
    grammars: Grammars | None = field(default=None, kw_only=True)

    def constraint(self, request: GenerateRequest) -> Constraint | None:
        """Of a request with a grammar. Raises InvalidRequest where it does not compile, or there is no tokenizer."""
        if not request.grammar:
            return None
        if self.grammars is None:
            raise InvalidRequest("this model has no tokenizer to read a grammar with")
        return self.grammars.constraint(request.grammar)

    @property
    def max_length(self) -> int:
        """Tokens that one sequence may hold: the context length, or all of the KV memory if that is less."""
        return min(self.decoder.config.max_positions, self.ledger.num_pages * self.ledger.page_size)

    def with_kv(self, num_pages: int, page_size: int) -> TargetModel:
        """The same weights with an empty KV of its own. Steps of both must not run at once."""
        kv = self.decoder.new_kv(num_pages * page_size)
        return TargetModel(self.decoder, PageLedger(num_pages, page_size), kv, grammars=self.grammars)

    def forward(self, rows: Sequence[ForwardRow]) -> Tensor:
        """[sum of num_logits, vocab_size] float32, in row order, until the next pass. Their positions are reserved."""
        tokens, batch, wanted = self._batch(rows)
        hidden = self.decoder.run(self.decoder.embed(tokens), batch, self.kv, 0, self.decoder.config.num_layers)
        return self.decoder.logits(hidden, wanted)

    def pick(
        self, rows: Sequence[ForwardRow], sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> list[int]:
        """The picks from what `forward` would return. positions: the absolute position that each will take."""
        return self.scored_picks(rows, sampling, positions).token_ids

    def scored_picks(
        self, rows: Sequence[ForwardRow], sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> Picks:
        """The picks and what their rows ask for beside. One call of the decoder, unless a row asks for something of its
        logits or has a pick refused.
        """
        if any(row.scoring for row in rows):
            return self._ruled_picks(rows, sampling, positions)
        tokens, batch, wanted = self._batch(rows)
        picks, logits = self.decoder.step(tokens, batch, self.kv, wanted, sampling, positions)
        return Picks(allowed_picks(self.decoder, logits, rows, picks, sampling, positions))

    def _ruled_picks(
        self, rows: Sequence[ForwardRow], sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> Picks:
        """The same where logits are changed or told before anything is picked."""
        logits = self.forward(rows)
        raw = raw_logprobs(logits, rows, self.decoder.config)
        apply_rules(logits, rows, positions, self.decoder.config)
        first = self.decoder.pick(logits, sampling, positions)
        picks = allowed_picks(self.decoder, logits, rows, first, sampling, positions)
        return Picks(picks, logprobs(raw, standing(rows, picks)))

    def _batch(self, rows: Sequence[ForwardRow]) -> tuple[list[int], RaggedBatch, list[int]]:
        """Tokens, their rows, and the flat indices of those whose logits are wanted."""
        slots = self.ledger.slots
        batch = build_batch(
            [BatchRow(slots(row.sequence_id)[: row.start + len(row.tokens)], len(row.tokens)) for row in rows],
            self.decoder.device,
        )
        ends = batch.offsets[1:]
        wanted = [i for row, end in zip(rows, ends, strict=True) for i in range(end - row.num_logits, end)]
        return [token for row in rows for token in row.tokens], batch, wanted


def load_target(
    path: Path,
    *,
    dtype: torch.dtype,
    num_positions: int,
    page_size: int,
    device: torch.device | None = None,
    execution: Execution = Execution.AUTO,
    weights: WeightFormat = WeightFormat.STORED,
    deterministic: bool = False,
    progress: Progress | None = None,
) -> TargetModel:
    """A target whose KV holds num_positions, rounded down to whole pages. Raises UnsupportedModel for a family that is
    not covered, ConfigError when that is less than a page or when steps that must be deterministic are not.
    """
    decoder = load_decoder(
        path, dtype=dtype, device=device or CPU, execution=execution, progress=progress, weights=weights
    )
    if num_positions < page_size:
        raise ConfigError(f"KV memory for {num_positions} positions holds no page of {page_size}; raise it for {path}")
    if deterministic and not decoder.is_deterministic:
        raise ConfigError(
            f"{path} cannot be deterministic in plain torch, whose matrix products change with the width; "
            "install a C++ compiler (g++ or clang++) and leave execution at auto, or set deterministic: null"
        )
    num_pages = num_positions // page_size
    return TargetModel(decoder, PageLedger(num_pages, page_size), decoder.new_kv(num_pages * page_size))
