"""Coupled sampling: the token at position t is argmax over v of log p(v) + G(seed, t, v).

By the Gumbel-max trick each pick is an exact sample of p. Target and drafter share the noise G, so a drafter close to
the target usually proposes the token that the target will pick (Daliri, Musco, Suresh 2024, "Coupling without
communication and drafter-invariant speculative decoding"). The normalizer of log p is the same for all tokens of a row
and is left out.

Filters are those of transformers, in its order: temperature, top-k, top-p, min-p. Temperature 0 is argmax.

The columns of logits are all tokens or, of a trimmed head, those of `token_ids`, which ascend. Noise belongs to tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.noise import gumbel
from protocol.request import SamplingParams

NO_PICK = -1  # a score is NaN or the best one is infinite, so the model is broken

_NEVER = -float("inf")
_DOUBT = 1e-3  # of probability: more than float32 loses where a vocabulary is summed up


def pick(
    logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int], token_ids: Tensor | None = None
) -> Tensor:
    """The picked token of each row, or NO_PICK: [num_rows] int64.

    logits: [num_rows, columns] float32. positions: the absolute position of each pick. token_ids: [columns] int64.
    """
    noisy = [row for row, params in enumerate(sampling) if not params.is_greedy]
    best, columns = logits.max(dim=-1)
    picks = _named(columns, token_ids).where(best.isfinite(), NO_PICK)
    if noisy:
        best, columns = _scores(logits, sampling, positions, noisy, token_ids).max(dim=-1)
        picks[noisy] = _named(columns, token_ids).where(best.isfinite(), NO_PICK)
    return picks


def _named(columns: Tensor, token_ids: Tensor | None) -> Tensor:
    return columns if token_ids is None else token_ids[columns]


def pick_with_confidence(
    logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int], token_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Picks, and their confidences in [0, 1] ([num_rows] float64).

    At temperature 0 the confidence is the largest probability. Otherwise it is tanh(margin / 2) of the best two noisy
    scores, because the noise, not the maximum probability, decides the pick. Instead of NO_PICK, returns the first
    token with confidence 0, because a drafter needs a token to continue.
    """
    scores = noisy_scores(logits, sampling, positions, token_ids)
    best, picks = scores.max(dim=-1)
    defined = best.isfinite()
    second = scores.scatter_(-1, picks[:, None], _NEVER).amax(dim=-1)
    greedy = torch.tensor([params.is_greedy for params in sampling], device=logits.device)
    largest = (best.float() - logits.logsumexp(dim=-1)).exp().double()
    confidences = largest.where(greedy, ((best - second) / 2).tanh())
    return _named(picks.where(defined, 0), token_ids), confidences.where(defined, 0.0)


def noisy_scores(
    logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int], token_ids: Tensor | None = None
) -> Tensor:
    """The scores whose argmax is the pick, [num_rows, columns] float64; plain logits at temperature 0."""
    scores = logits.double()
    noisy = [row for row, params in enumerate(sampling) if not params.is_greedy]
    if noisy:
        scores[noisy] = _scores(logits, sampling, positions, noisy, token_ids)
    return scores


def filter_logits(logits: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """Logits divided by temperature, with filtered tokens at -inf: [num_rows, columns]. No row may be greedy."""
    scaled = logits / _column(logits, [params.temperature for params in sampling])
    if any(params.top_k for params in sampling):
        scaled = _top_k(scaled, [params.top_k or scaled.shape[-1] for params in sampling])
    if any(params.top_p < 1 for params in sampling):
        scaled = _top_p(scaled, [params.top_p for params in sampling])
    if any(params.min_p > 0 for params in sampling):
        scaled = _min_p(scaled, [params.min_p for params in sampling])
    return scaled


def surely_kept(logits: Tensor, sampling: Sequence[SamplingParams], columns: Tensor) -> Tensor:
    """Whether the filters of each row keep this column, [num_rows] bool; False also where only sorting can tell. No row
    may be greedy.
    """
    scaled = logits / _column(logits, [params.temperature for params in sampling])
    own = scaled.gather(-1, columns[:, None])
    weights = (scaled - scaled.max(dim=-1, keepdim=True).values).exp()
    own_weight = weights.gather(-1, columns[:, None])
    ranks = _column(logits, [params.top_k or scaled.shape[-1] for params in sampling])
    kept = (scaled > own).sum(dim=-1, keepdim=True) < ranks
    if any(params.top_p < 1 for params in sampling):
        ahead = weights.where(scaled >= own, 0).sum(dim=-1, keepdim=True) - own_weight
        top_p = _column(logits, [params.top_p for params in sampling])
        kept &= (ahead <= (top_p - _DOUBT) * _total(weights, sampling)) | (top_p == 1)
    min_p = _column(logits, [params.min_p for params in sampling])
    return (kept & (own_weight >= min_p * (1 + _DOUBT)))[:, 0]


def _total(weights: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """Of the tokens that top-k leaves, at least: [num_rows, 1]."""
    limited = [row for row, params in enumerate(sampling) if params.top_k]
    total = weights.sum(dim=-1, keepdim=True)
    if limited:
        top_k = [min(sampling[row].top_k, weights.shape[-1]) for row in limited]
        ranked = weights[limited].topk(max(top_k), dim=-1).values.cumsum(dim=-1)
        total[limited] = ranked.gather(-1, torch.tensor(top_k, device=weights.device)[:, None] - 1)
    return total


def _scores(
    logits: Tensor,
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
    rows: list[int],
    token_ids: Tensor | None,
) -> Tensor:
    """Noisy scores of the given rows, [len(rows), columns] float64."""
    chosen = [sampling[row] for row in rows]
    seeds = torch.tensor([_signed(params.seed) for params in chosen], device=logits.device)
    at = torch.tensor([positions[row] for row in rows], device=logits.device)
    noise = gumbel(seeds, at, logits.shape[-1] if token_ids is None else int(token_ids[-1]) + 1)
    return _columns(noise, token_ids).add_(filter_logits(logits[rows], chosen))


def _columns(noise: Tensor, token_ids: Tensor | None) -> Tensor:
    return noise if token_ids is None else noise[:, token_ids]


def _top_k(scaled: Tensor, top_k: list[int]) -> Tensor:
    ranked = scaled.topk(min(max(top_k), scaled.shape[-1]), dim=-1).values
    rank = torch.tensor(top_k, device=scaled.device).clamp(max=ranked.shape[-1]) - 1
    smallest_kept = ranked.gather(-1, rank[:, None])
    return scaled.masked_fill(scaled < smallest_kept, _NEVER)


def _top_p(scaled: Tensor, top_p: list[float]) -> Tensor:
    """Keeps the smallest set of tokens whose probability reaches top_p; with top_p 1, all tokens."""
    ascending, order = scaled.sort(dim=-1)
    beyond = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - _column(scaled, top_p)
    beyond[:, -1] = False
    beyond &= _column(scaled, top_p) < 1
    return scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), _NEVER)


def _min_p(scaled: Tensor, min_p: list[float]) -> Tensor:
    probabilities = scaled.softmax(dim=-1)
    floor = probabilities.max(dim=-1, keepdim=True).values * _column(scaled, min_p)
    return scaled.masked_fill(probabilities < floor, _NEVER)


def _column(like: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed
