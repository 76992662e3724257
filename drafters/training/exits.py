"""Logits at several depths of one decoder: each exit goes through the same final norm and LM head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def exit_logits(model: Any, tokens: Tensor, exits: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Logits [row, position, vocabulary] after `exits` layers each, under autocast to `dtype`.

    `model` is a HF decoder with `.model.norm` and `.lm_head`.
    """
    with autocast(tokens.device, dtype):
        return [head(model, hidden) for hidden in exit_hidden(model, tokens, exits)]


def exit_hidden(model: Any, tokens: Tensor, exits: Sequence[int]) -> list[Tensor]:
    """Normed hidden states [row, position, hidden]; the model's own last one is normed already."""
    depth = model.config.num_hidden_layers
    output = model.model(input_ids=tokens, output_hidden_states=True, use_cache=False)
    return [output.last_hidden_state if at == depth else model.model.norm(output.hidden_states[at]) for at in exits]


def head(model: Any, hidden: Tensor) -> Tensor:
    """The LM head, with the soft cap of the families that have one."""
    logits: Tensor = model.lm_head(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision in `dtype`; none in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
