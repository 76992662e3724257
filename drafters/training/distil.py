"""What the targets say: their log-probabilities on given text, and their own continuations of prompts.

A drafter is judged on the target's own text, so part of its training data is exactly that. A continuation is taught
by the target that wrote it (whoever reads it meets that target's distribution), corpus text by the mean over targets.
Targets run as they are served, by native kernels where they can.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drafters.training.data import TokenRows, Tokens
from drafters.training.exits import pick_device
from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.load import load_decoder
from model.rollout import Rollout
from protocol.request import SamplingParams


def load_teacher(folder: Path) -> Decoder:
    """The target in `folder`, in bf16."""
    return load_decoder(folder, dtype=torch.bfloat16, device=pick_device())


def logits_at(decoder: Decoder, tokens: Sequence[int], exits: Sequence[int]) -> Iterator[Tensor]:
    """Logits [position, vocabulary] after `exits` layers each, valid until the next is asked for."""
    batch = build_batch([BatchRow(np.arange(len(tokens)), len(tokens))], decoder.device)
    kv, hidden = decoder.new_kv(len(tokens)), decoder.embed(tokens)
    for start, stop in zip((0, *exits), exits, strict=False):
        hidden = decoder.run(hidden, batch, kv, start, stop)
        yield decoder.logits(hidden, range(len(tokens)))


def judge(teachers: Sequence[Decoder], tokens: Tokens, k: int) -> TokenRows:
    """`tokens` [row, position] with the `k` largest log-probabilities of every teacher at each position."""
    ids = np.empty((len(teachers), *tokens.shape, k), np.int32)
    logp = np.empty(ids.shape, np.float16)
    for index, teacher in enumerate(teachers):
        for row, row_tokens in enumerate(tokens.tolist()):
            (logits,) = logits_at(teacher, row_tokens, [teacher.config.num_layers])
            largest = logits.log_softmax(-1).topk(k)
            ids[index, row], logp[index, row] = largest.indices.cpu(), largest.values.cpu()
    return TokenRows(tokens, ids, logp)


def continue_prompts(
    target: Decoder, prompts: Sequence[Sequence[int]], lengths: Sequence[int], sampling: Sequence[SamplingParams]
) -> list[list[int]]:
    """The prompts, continued by the target's picks to these lengths in tokens, past any end of text."""
    ends = np.cumsum(lengths)
    slots = np.split(np.arange(ends[-1]), ends[:-1])
    rows = [
        Rollout(row_slots, 0, prompt, length - len(prompt), params)
        for row_slots, prompt, length, params in zip(slots, prompts, lengths, sampling, strict=True)
    ]
    continuations = target.roll_out(rows, target.new_kv(int(ends[-1])), target.config.num_layers, None)
    return [
        [*prompt, *(token for token, _ in continuation)]
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
