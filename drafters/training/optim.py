"""Optimisers for a short budget: Muon turns every hidden matrix at the same speed, AdamW the rest.

Embeddings (with a tied head) and norms are not linear maps between hidden spaces, so they stay with
AdamW. The learning rate warms up and then falls in a straight line to zero over the fixed number of
steps, so that the schedule depends on the step alone and a resumed run follows the same one.
"""

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from drafters.training.config import TrainingSchedule

EMBEDDING_NAMES = ("embed_tokens", "lm_head")


def build_optimisers(model: nn.Module, schedule: TrainingSchedule) -> list[Optimizer]:
    """[Muon, Muon, AdamW]: two halves of the hidden matrices, which can step at once, and the rest.

    Each group keeps its base rate in `initial_lr`.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and not any(part in name for part in EMBEDDING_NAMES)
        (matrices if hidden else others).append(parameter)
    matrix_rate, decay = schedule.matrix_learning_rate, schedule.weight_decay
    optimisers: list[Optimizer] = [
        Muon(half, lr=matrix_rate, weight_decay=decay, momentum=0.95, nesterov=True)
        for half in (matrices[::2], matrices[1::2])
    ]
    optimisers.append(AdamW(others, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


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
