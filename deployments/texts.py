"""What an ingress has of each model to turn text into tokens and back, and the card that the API reads of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from api.backend import ModelCard, max_token_bytes
from api.control import ControlTokens
from api.places import Places
from api.rendering import Renderer
from model.files import TEXT_FILES, resolve
from model.tokenizer import end_token_warning, end_tokens, load_tokenizer
from model.vocabulary import Spellings

# Every thread that encodes keeps a cache of 10,000 words per tokenizer: 5 MiB for short words, 36 MiB for Chinese.
# asyncio's default is four threads more than there are cores. Two of each model, so that a long prompt does not delay
# the others, and no model's prompts those of another.
NUM_TOKENIZER_THREADS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelText:
    """places: for what is answered at once."""

    tokenizer: PreTrainedTokenizerFast
    control: ControlTokens
    spellings: Spellings
    max_token_bytes: int
    renderer: Renderer
    places: Places
    threads: ThreadPoolExecutor

    def warm_up(self) -> None:
        """Starts what the first chat would have to wait for."""
        if self.tokenizer.chat_template:
            self.renderer.start()

    def card(self, model: str, info: Mapping[str, Any], created: int) -> ModelCard:
        """info: what a target says of itself."""
        return ModelCard(
            id=model,
            max_model_len=info["max_model_len"],
            vocab_size=info["vocab_size"],
            tokenizer=self.tokenizer,
            control=self.control,
            max_token_bytes=self.max_token_bytes,
            eos_token_ids=end_tokens(tuple(info["eos_token_ids"]), self.tokenizer),
            created=created,
            max_batch=info["max_batch"],
            spellings=self.spellings,
            exits=tuple(info["exits"]),
            max_draft_length=info["longest_draft"],
            renderer=self.renderer,
            places=self.places,
            threads=self.threads,
        )


def load_text(model: str, path: str, most: int | None) -> ModelText:
    """Of a checkpoint. most: places; None: no bound."""
    tokenizer = load_tokenizer_of(path)
    return ModelText(
        tokenizer=tokenizer,
        control=ControlTokens(tokenizer),
        spellings=Spellings(tokenizer),
        max_token_bytes=max_token_bytes(tokenizer),
        renderer=Renderer(),
        places=Places(most),
        threads=ThreadPoolExecutor(NUM_TOKENIZER_THREADS, thread_name_prefix=f"tokenizer-{model}"),
    )


def load_tokenizer_of(path: str) -> PreTrainedTokenizerFast:
    directory = resolve(path, TEXT_FILES)
    tokenizer = load_tokenizer(directory)
    if warning := end_token_warning(directory, tokenizer):
        logger.warning(warning)
    return tokenizer
