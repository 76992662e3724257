"""The interface between the API and whatever generates tokens. Deployments implement it over Ray, tests by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from api.control import ControlTokens
from api.places import Places
from api.rendering import Renderer
from api.trace import Track
from model.vocabulary import Spellings
from protocol.request import GenerateRequest, TokenRun

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the API knows about a target.

    max_token_bytes: upper bound on the UTF-8 bytes of one token. created: seconds since the epoch. max_batch: sequences
    that one replica decodes at once. exits: layers of each exit of its drafter; None or empty: unknown, not checked.
    max_draft_length: tokens that a request may ask to draft per round; None: no limit. threads: where its texts are
    made tokens; None: asyncio's.
    """

    id: str
    max_model_len: int
    vocab_size: int
    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    max_token_bytes: int
    eos_token_ids: tuple[int, ...]
    created: int
    max_batch: int
    spellings: Spellings
    exits: tuple[int, ...] | None = None
    max_draft_length: int | None = None
    renderer: Renderer = field(default_factory=Renderer)
    places: Places = field(default_factory=Places)
    threads: Executor | None = None

    async def beside(self, work: Callable[[], T]) -> T:
        """The result of work on a text, which the event loop does not wait for, nor other models' texts."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)


def max_token_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    """An upper bound on the bytes of text of one token. Byte-level vocabularies spell some bytes with two."""
    return max(len(token.encode()) for token in tokenizer.get_vocab())


@dataclass(frozen=True, slots=True)
class Starting:
    """Replicas of one target that start. progress: how far they are; empty where none does. left_s: None: not known."""

    progress: str = ""
    left_s: float | None = None


class Backend(Protocol):
    @property
    def names(self) -> Sequence[str]:
        """The names of all targets, ready or not."""

    async def card(self, model: str) -> ModelCard | None:
        """The card of one of `names`, or None while that target is still loading. Answers within about a second."""

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        """Yields runs of tokens in order and without gaps; the last has a finish reason.

        Closing the generator cancels the request. Raises QueueFull, NotReady, InvalidRequest or PromptTooLong; any
        other exception is a fault of the server.
        """

    async def complete(self, model: str, request: GenerateRequest) -> TokenRun:
        """The tokens of `generate` in a single run, at lower cost. Cancelling the coroutine cancels the request."""

    async def ready(self, model: str) -> bool:
        """Whether one of `names` can take requests. Answers within about a second."""

    async def starting(self, model: str) -> Starting:
        """The replicas of one of `names` that start now."""

    async def stats(self) -> Mapping[str, Any]:
        """Counters of every replica, as JSON values."""

    async def router(self) -> Mapping[str, Any]:
        """What the router of each target replica believes, by target, as JSON values."""

    async def token_counts(self) -> Mapping[str, Any]:
        """By target, the hash of its vocabulary and how often each token was written, where the config counts them."""

    async def trace(self, num_rounds: int) -> tuple[Sequence[Track], Sequence[Track]]:
        """The last rounds of each target replica, and the last passes of each draft replica.

        Track names do not reveal incarnations.
        """
