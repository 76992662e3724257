"""The sorted loss: the mean over exits of next-token loss plus distillation from the teachers.

SoFT (arXiv 2407.01955) trains every depth prefix at once, all through the same final norm and LM head. To its
cross-entropy we add alpha * KL(teacher || exit), the mean over teachers. A teacher gives its k largest
probabilities; what is left is one further outcome, "any other token", so that the KL is between honest
distributions over k + 1 outcomes and an exit is never pushed to forget the tail.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_REST = 1e-4
NEVER = -1e4


def teacher_divergence(log_probs: Tensor, ids: Tensor, teacher: Tensor) -> Tensor:
    """Mean over positions of KL(teacher || exit) in nats, over the k kept tokens and the rest as one outcome.

    log_probs: [n, columns] of the exit. ids, teacher: [n, k] columns and log-probabilities of the teacher; column -1 is
    not in the head, and the teacher's other probabilities are raised to make up for it.
    """
    has_row = ids >= 0
    kept = log_probs.gather(-1, ids.long().clamp_min(0)).masked_fill(~has_row, NEVER)
    within = teacher.float().masked_fill(~has_row, NEVER)
    lost = (teacher.float().exp() * ~has_row).sum(-1, keepdim=True)
    teacher = within - (1 - lost).clamp_min(SMALLEST_REST).log()
    inside = (teacher.exp() * (teacher - kept)).sum(-1)
    teacher_rest = (1 - teacher.exp().sum(-1)).clamp_min(SMALLEST_REST)
    rest = (1 - kept.exp().sum(-1)).clamp_min(SMALLEST_REST)
    return (inside + teacher_rest * (teacher_rest.log() - rest.log())).mean()


def exit_loss(logits: Tensor, labels: Tensor, ids: Tensor, teachers: Tensor, weight: float) -> Tensor:
    """Next-token loss of one exit plus `weight` times its mean divergence from the teachers, in nats.

    logits: [n, columns]; labels: [n]; ids, teachers: [teacher, n, k], no teachers giving [0, n, k]. Labels and ids are
    columns; -1 has no row in the head.
    """
    log_probs = logits.float().log_softmax(-1)
    loss = F.nll_loss(log_probs, labels, ignore_index=-1)
    if weight == 0 or len(ids) == 0:
        return loss
    divergences = [teacher_divergence(log_probs, i, t) for i, t in zip(ids, teachers, strict=True)]
    return loss + weight * torch.stack(divergences).mean()


def sorted_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    ids: Tensor,
    teachers: Tensor,
    weight: float,
    exit_weights: Sequence[float] = (),
) -> Tensor:
    """The mean of `exit_loss` over the logits of all exits, weighted by `exit_weights` if given."""
    losses = torch.stack([exit_loss(at_exit, labels, ids, teachers, weight) for at_exit in logits])
    shares = torch.tensor(exit_weights or [1.0] * len(logits), device=losses.device)
    return (losses * shares).sum() / shares.sum()
