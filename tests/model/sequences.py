"""Token sequences in a decoder's paged KV, for tests that compare logits."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.pages import PageLedger
from tests.model.families import VOCAB


class Sequences:
    """Token sequences in one decoder's paged KV: the least that an engine would do."""

    def __init__(self, decoder: Decoder, num_slots: int = 512, page_size: int = 16) -> None:
        self.decoder = decoder
        self.ledger = PageLedger(num_slots // page_size, page_size)
        self.kv = decoder.new_kv(num_slots)
        self.lengths: dict[int, int] = {}

    def forward(self, new_tokens: dict[int, Tensor], cuts: tuple[int, ...] = ()) -> dict[int, Tensor]:
        """new_tokens: sequence -> [n]. Returns sequence -> logits [n, vocab]. Layers run in pieces cut at `cuts`."""
        rows = []
        for sequence, tokens in new_tokens.items():
            if sequence not in self.lengths:
                self.ledger.open(sequence)
            self.lengths[sequence] = self.lengths.get(sequence, 0) + len(tokens)
            assert self.ledger.reserve(sequence, self.lengths[sequence])
            rows.append(BatchRow(self.ledger.slots(sequence)[: self.lengths[sequence]], len(tokens)))
        batch = build_batch(rows)
        bounds = (0, *cuts, self.decoder.config.num_layers)
        with torch.inference_mode():
            hidden = self.decoder.embed(torch.cat(list(new_tokens.values())).tolist())
            for start, stop in itertools.pairwise(bounds):
                hidden = self.decoder.run(hidden, batch, self.kv, start, stop)
            logits = self.decoder.logits(hidden, range(len(hidden))).clone()
        return dict(zip(new_tokens, logits.split_with_sizes([row.num_new for row in rows]), strict=True))

    def truncate(self, sequence: int, length: int) -> None:
        self.ledger.truncate(sequence, length)
        self.lengths[sequence] = length

    def greedy(self, prompt: Tensor, num_tokens: int) -> list[int]:
        logits = self.forward({0: prompt})[0]
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < num_tokens:
            tokens.append(int(self.forward({0: torch.tensor(tokens[-1:])})[0][-1].argmax()))
        return tokens


def random_tokens(seed: int, length: int) -> Tensor:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))
