"""Logits at several depths of one HF model, with gradients: each exit goes through the same final norm and LM head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def exit_logits(model: Any, tokens: Tensor, exits: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Logits [row, position, vocabulary] after `exits` layers each; in mixed precision unless dtype is float32.

    model: a HF decoder with `.model.norm` and `.lm_head`. tokens: [row, position].
    """
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype != torch.float32):
        output = model.model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        depth = model.config.num_hidden_layers  # the last hidden state is normed already
        normed = [
            output.last_hidden_state if at == depth else model.model.norm(output.hidden_states[at]) for at in exits
        ]
        return [_head(model, hidden) for hidden in normed]


def _head(model: Any, hidden: Tensor) -> Tensor:
    """The LM head, with the soft cap of the families that have one."""
    logits: Tensor = model.lm_head(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
