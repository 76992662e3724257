"""The seam between the API and what generates: one small interface, with a Ray twin and a scripted one in tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from api.control import ControlTokens
from api.trace import Track
from protocol.request import GenerateRequest, TokenRun


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the API must know of a target. longest_token: in bytes; created: seconds since the epoch, for clients.

    max_batch: sequences that a replica decodes at once. exits: the depths that its drafter has, in layers; None or
    empty: not known here, and not checked. longest_draft: that a request may ask for; None: any.
    """

    id: str
    max_model_len: int
    vocab_size: int
    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    longest_token: int
    eos_token_ids: tuple[int, ...]
    created: int
    max_batch: int
    exits: tuple[int, ...] | None = None
    longest_draft: int | None = None


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """A bound on the bytes of text that one token stands for: byte-level vocabularies spell some of them in two."""
    return max(len(token.encode()) for token in tokenizer.get_vocab())


class Backend(Protocol):
    @property
    def names(self) -> Sequence[str]:
        """Every target, whether or not it is up."""

    async def card(self, model: str) -> ModelCard | None:
        """Of one of `names`; None as long as that target has not told about itself. Answers in a second or so."""

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        """Runs in order, without gaps, the last with a finish reason. Closing the generator cancels the request.

        Raises QueueFull, NotReady, InvalidRequest or PromptTooLong; anything else is a fault.
        """

    async def complete(self, model: str, request: GenerateRequest) -> TokenRun:
        """All that `generate` gives, in one run and for less. Cancelling it cancels the request."""

    async def ready(self, model: str) -> bool:
        """Whether one of `names` can take requests, in a second or so."""

    async def stats(self) -> Mapping[str, Any]:
        """Counts of every replica, as JSON takes them."""

    async def router(self) -> Mapping[str, Any]:
        """By target what the router of each of its replicas believes, as JSON takes it."""

    async def trace(self, num_rounds: int) -> tuple[Sequence[Track], Sequence[Track]]:
        """The last rounds of each target replica, and the last passes of each draft replica.

        Tracks have names that mean nothing to them: whoever knows an incarnation can speak for its replica.
        """
