"""Stream heads: guesses at tokens further on, which the drafter itself verifies in its next pass.

An exit's own pick is the next token. Stream 1 guesses the one behind it from the same hidden state and the pick's
embedding; stream 2 the one behind that, from the state of stream 1 and the guess; and so on (sequentially dependent
heads, as in Hydra, Ankner et al. 2024). Every state goes through the decoder's own final norm and LM head.

The next pass feeds the pick and the guesses behind it at once. Where the exit's own pick at a guess's position is the
guess, the position behind it has been run already and gives one more pick (Mirror-SD section 3.2: a draft step
verifies its own proposals). So guesses save passes, and never change what is drafted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


class StreamHead(NamedTuple):
    inner: Tensor  # [width, 2 hidden]
    outer: Tensor  # [hidden, width]


def next_state(head: StreamHead, state: Tensor, embedded: Tensor) -> Tensor:
    """state: [..., hidden], on leaving an exit or of the stream before. embedded: [..., hidden], of the token that was
    picked from it. Returns [..., hidden], which the final norm and the LM head turn into logits.
    """
    state = _unit(state)
    inner = F.linear(torch.cat([state, _unit(embedded)], -1), head.inner)
    return state + F.linear(F.silu(inner), head.outer)


def _unit(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], None, EPS)
