"""What the targets say: their log-probabilities on the corpus, and their own continuations of it.

A drafter is judged on the target's own text, so part of its training data is exactly that: continuations that
each target samples from prompts of the training corpus. A target's continuation is taught by that target alone
(whoever reads it meets that target's distribution), corpus text by the mean over all targets.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from drafters.training.base import load_model
from drafters.training.config import OnPolicy
from drafters.training.data import Chunk
from drafters.training.exits import pick_device
from drafters.training.stream import Tokens

TEACHER_ROWS = 4


def load_teacher(folder: Path) -> Any:
    """The target in `folder`, in bf16 and with gradients off."""
    return load_model(folder, torch.bfloat16).to(pick_device()).eval().requires_grad_(False)


def top_log_probs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest log-probabilities at each position: (ids int32, values float16), both [..., k]."""
    values, ids = logits.float().log_softmax(-1).topk(k)
    return ids.int(), values.half()


def judge(teachers: Sequence[Any], rows: Tokens, k: int) -> Chunk:
    """A chunk: `rows` [row, position] with the top `k` of every teacher."""
    ids: list[Tensor] = []
    values: list[Tensor] = []
    with torch.inference_mode():
        for teacher in teachers:
            tokens = torch.from_numpy(rows.astype(np.int64)).to(teacher.device)
            parts = torch.split(tokens, TEACHER_ROWS)
            tops = [top_log_probs(teacher(input_ids=part, use_cache=False).logits, k) for part in parts]
            ids.append(torch.cat([top[0] for top in tops]))
            values.append(torch.cat([top[1] for top in tops]))
    return _chunk(torch.from_numpy(rows.astype(np.int64)), torch.stack(ids), torch.stack(values))


def _chunk(tokens: Tensor, ids: Tensor, values: Tensor) -> Chunk:
    return {
        "tokens": tokens.cpu().numpy().astype(np.uint32),
        "ids": ids.cpu().numpy(),
        "logp": values.cpu().numpy(),
    }


def sampler(teacher: Any, stream: Tokens, options: OnPolicy, k: int, seed: int) -> Callable[[int], Chunk]:
    """From a chunk number to rows that begin with a prompt from `stream` and go on as `teacher` wills."""

    def make(index: int) -> Chunk:
        rng = np.random.default_rng((seed, index))
        prompt_length = int(rng.integers(options.prompt_lengths[0], options.prompt_lengths[1] + 1))
        starts = rng.integers(0, len(stream) - prompt_length, options.batch)
        prompts = np.stack([stream[start : start + prompt_length] for start in starts])
        temperature = options.temperatures[index % len(options.temperatures)]
        generator = torch.Generator(teacher.device).manual_seed(seed * 100_003 + index)
        tokens = torch.from_numpy(prompts.astype(np.int64)).to(teacher.device)
        return continue_rows(teacher, tokens, options.row_length, temperature, k, generator)

    return make


@torch.inference_mode()
def continue_rows(
    teacher: Any, tokens: Tensor, length: int, temperature: float, k: int, generator: torch.Generator
) -> Chunk:
    """`tokens` [row, position] continued to `length` at `temperature`, with the teacher's top `k` everywhere.

    The log-probabilities are at temperature 1, whatever the sampling temperature.
    """
    cache, tops, new = roomy_cache(teacher.config), [], tokens
    while True:
        logits = teacher(input_ids=new, past_key_values=cache, use_cache=True).logits
        tops.append(top_log_probs(logits, k))
        if tokens.shape[1] == length:
            break
        new = draw(logits[:, -1].float(), temperature, generator)[:, None]
        tokens = torch.cat([tokens, new], dim=1)
    ids, values = (torch.cat([top[part] for top in tops], dim=1)[None] for part in (0, 1))
    return _chunk(tokens, ids, values)


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token per row of logits [row, vocabulary]; argmax at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits / temperature - noise.log()).argmax(-1)


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that writes into spare room, where DynamicLayer copies everything at every token."""

    keys: Any
    values: Any
    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values [row, head, position, width] so far, new ones included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < end:
            old = self.keys, self.values
            rows, heads, _, width = key_states.shape
            self.room = (
                key_states.new_empty(rows, heads, 2 * end, width),
                value_states.new_empty(rows, heads, 2 * end, value_states.shape[-1]),
            )
            if begin:
                self.room[0][..., :begin, :], self.room[1][..., :begin, :] = old
        self.room[0][..., begin:end, :], self.room[1][..., begin:end, :] = key_states, value_states
        self.keys, self.values = self.room[0][..., :end, :], self.room[1][..., :end, :]
        return self.keys, self.values


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of `config`, plain layers with spare room."""
    cache = DynamicCache(config=config)
    make: Callable[[], DynamicLayer] = RoomyLayer
    cache.layers = [make() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
