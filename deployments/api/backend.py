"""The seam between the API and what generates: one small interface, with a Ray twin and a scripted one in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from protocol.request import GenerateRequest, TokenRun


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the API must know of a target. created: seconds since the epoch, as clients expect it."""

    id: str
    max_model_len: int
    vocab_size: int
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    created: int


class Backend(Protocol):
    def models(self) -> Sequence[ModelCard]:
        """The targets that are known by now; none before the first is ready."""

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        """Runs in order, without gaps, the last with a finish reason. Closing the generator cancels the request.

        Raises QueueFull, NotReady, InvalidRequest or PromptTooLong; anything else is a fault.
        """

    async def ready(self) -> bool:
        """Whether every target can take requests."""
