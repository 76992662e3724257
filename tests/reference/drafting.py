"""The obvious drafter: every token from scratch, one sequence alone, a fresh KV for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from protocol.request import SamplingParams

Drafted = tuple[int, float]  # token, confidence


def draft_from_scratch(
    decoder: Decoder,
    tokens: Sequence[int],
    length: int,
    depth: int,
    sampling: SamplingParams,
    stop_probability: float = 0.0,
) -> list[Drafted]:
    drafted: list[Drafted] = []
    for _ in range(length):
        known = [*tokens, *(token for token, _ in drafted)]
        drafted.append(next_from_scratch(decoder, known, depth, sampling))
        if 0 < stop_probability >= math.prod(confidence for _, confidence in drafted):
            break
    return drafted


def next_from_scratch(decoder: Decoder, tokens: Sequence[int], depth: int, sampling: SamplingParams) -> Drafted:
    kv = decoder.new_kv(len(tokens))
    batch = build_batch([BatchRow(np.arange(len(tokens)), len(tokens))])
    with torch.inference_mode():
        hidden = decoder.run(decoder.embed(tokens), batch, kv, 0, depth)
        logits = decoder.logits(hidden, [len(tokens) - 1])
        picks, confidences = decoder.pick_with_confidence(logits, [sampling], [len(tokens)])
    return int(picks[0]), float(confidences[0])
