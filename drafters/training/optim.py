"""Optimisers for a short budget: Muon turns every hidden matrix at the same speed, AdamW the rest.

Embeddings (with a tied head) and norms are not linear maps between hidden spaces, so they stay with
AdamW. The learning rate warms up and then falls in a straight line to zero over the fixed number of
steps, so that the schedule depends on the step alone and a resumed run follows the same one.
"""

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from drafters.training.config import TrainingSchedule

BETAS = (0.9, 0.95)
EMBEDDING_NAMES = ("embed_tokens", "lm_head")


def build_optimisers(model: nn.Module, schedule: TrainingSchedule) -> list[Optimizer]:
    """Two halves of the hidden matrices, which can step at once, and the rest, which AdamW takes.

    Each group keeps its base rate in `initial_lr`. Weights without gradients are left out.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and not any(part in name for part in EMBEDDING_NAMES)
        (matrices if hidden else others).append(parameter)
    optimisers: list[Optimizer] = [_of_matrices(half, schedule) for half in (matrices[::2], matrices[1::2])]
    optimisers.append(AdamW(others, lr=schedule.learning_rate, betas=BETAS, weight_decay=0.0))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def _of_matrices(matrices: list[nn.Parameter], schedule: TrainingSchedule) -> Optimizer:
    rate, decay = schedule.matrix_learning_rate, schedule.weight_decay
    if schedule.optimiser == "adamw":
        return AdamW(matrices, lr=rate, betas=BETAS, weight_decay=decay)
    return Muon(matrices, lr=rate, weight_decay=decay, momentum=0.95, nesterov=True)


def lr_factor(step: int, steps: int, warm_up: int) -> float:
    """Share of the base rate at `step` of `steps`: linear warm-up, then linear decay to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return max(0.0, (steps - step) / max(1, steps - warm_up))


def set_rates(optimisers: list[Optimizer], factor: float) -> None:
    """Scales every group's rate to `factor` of its base rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
