"""transformers behind the seam: `generate`, assisted generation, prompt lookup, and continuous batching.

Times are read where transformers lets one look at every step: a stopping criterion, which stops nothing, sees each
new length; continuous batching stamps its own tokens. EOS is taken out of the generation config instead of being
suppressed by `min_new_tokens`, which would change the text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import logging

from bench.cells import PAGE, Cell, CellOutcome, Subject, Timed, TokenIds, Unavailable
from bench.peers.imported import imported

PAD = 0
NEVER = -1  # an EOS that no token is
PREFILL_TOKENS = 512  # of one step of continuous batching, as in our engine


class StepMarks(StoppingCriteria):
    """Notes (clock, length) after every step, and never stops."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        self.seen.append((time.perf_counter(), input_ids.shape[1]))
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersEngine:
    """Modes generate, assisted and lookup. More prompts than the batch run as one batch after the other."""

    name = "transformers"
    shares_noise = False
    version = transformers.__version__

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._target: Any = None
        self._assistant: Any = None

    def open(self) -> None:
        torch.set_num_threads(self._subject.threads)
        self._target = load(self._subject.target, self._subject.dtype)

    def close(self) -> None:
        self._target = self._assistant = None

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        torch.manual_seed(0)
        options = self._options(cell)
        groups = [prompts[at : at + cell.batch] for at in range(0, len(prompts), cell.batch)]
        start = time.perf_counter()
        outputs = [self._batch(cell, group, max_tokens, options, start) for group in groups]
        return CellOutcome(tuple(timed for group in outputs for timed in group))

    def _options(self, cell: Cell) -> dict[str, Any]:
        if cell.mode == "lookup":
            return {"prompt_lookup_num_tokens": cell.length}
        if cell.mode != "assisted":
            return {}
        if self._subject.drafter is None:
            raise Unavailable("assisted generation needs --drafter")
        self._assistant = self._assistant or load(self._subject.drafter, self._subject.dtype)
        fixed = self._assistant.generation_config
        fixed.num_assistant_tokens = cell.length
        fixed.num_assistant_tokens_schedule = "constant"
        fixed.assistant_confidence_threshold = 0.0
        return {"assistant_model": self._assistant}

    def _batch(
        self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int, options: dict[str, Any], start: float
    ) -> list[Timed]:
        ids, mask = left_padded(prompts)
        marks = StepMarks()
        sequences = self._target.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=generation_config(cell.temperature, max_tokens),
            stopping_criteria=StoppingCriteriaList([marks]),
            **options,
        )
        width = ids.shape[1]
        lengths = [width, *(length for _, length in marks.seen)]
        sizes = [after - before for before, after in pairwise(lengths)]
        arrived = tuple(now for (now, _), size in zip(marks.seen, sizes, strict=True) for _ in range(size))
        verified = tuple(sizes) if cell.speculates else ()
        drafted = num_drafted(sizes, cell.length, max_tokens) if cell.mode == "assisted" else None
        return [Timed(tuple(row[width:]), arrived, start, verified, drafted) for row in sequences.tolist()]


class ContinuousBatching(TransformersEngine):
    """Weights of its own: the manager changes the attention of the model that it is given.

    The manager lives for one call (`persistent_manager=False`): a kept one stays sized for the first call's batch.
    """

    name = "transformers continuous batching"

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        outputs = self._target.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=generation_config(cell.temperature, max_tokens, NEVER),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=self._subject.positions // PAGE + 1,
                max_batch_tokens=PREFILL_TOKENS,
                max_requests_per_batch=cell.batch,
                seed=0,
            ),
            record_timestamps=True,
            progress_bar=False,
            persistent_manager=False,
        )
        if len(outputs) != len(prompts) or any(output.error for output in outputs.values()):
            raise Unavailable("continuous batching gave up on a request; its own log says why")
        timed = tuple(
            Timed(tuple(output.generated_tokens), tuple(output.timestamps), output.created_time)
            for output in outputs.values()
        )
        return CellOutcome(timed)


def load(directory: Path, dtype: torch.dtype) -> Any:
    quiet: Any = logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    model: Any = AutoModelForCausalLM.from_pretrained(imported(directory, dtype), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model


def generation_config(temperature: float, max_tokens: int, eos_token_id: int | None = None) -> Any:
    """Greedy at temperature 0, else the full distribution."""
    config: Any = GenerationConfig
    greedy = {"do_sample": False}
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    options = sampled if temperature > 0 else greedy
    return config(max_new_tokens=max_tokens, pad_token_id=PAD, eos_token_id=eos_token_id, **options)


def left_padded(prompts: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [prompts, longest] each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def num_drafted(sizes: Sequence[int], length: int, max_tokens: int) -> int:
    """A constant schedule drafts `length` tokens in every round, or what is left beside the bonus."""
    drafted, left = 0, max_tokens
    for size in sizes:
        drafted += min(length, left - 1)
        left -= size
    return drafted
