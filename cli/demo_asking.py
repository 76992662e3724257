"""How the demo asks a model: a chat model for an answer, any other for the rest of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.config import AppConfig

CHAT_PROMPTS = (
    "Why is the sky blue? Explain it to a curious child.",
    "Tell me a short story about a cat who wants to see the sea.",
    "How do I plant tomatoes in a pot? List the steps.",
)
CODE_PROMPTS = (
    'def read_lines(path):\n    """Return the lines of a text file, without their line ends."""\n',
    "class Queue:\n    def __init__(self, size):\n",
    "import argparse\n\n\ndef main():\n",
)


@dataclass(frozen=True, slots=True)
class Manner:
    """prompts: what is asked by default. fields: a prompt in a request's body. past_end: whether the text goes on
    behind an end token. gap: what is shown between prompt and answer.
    """

    route: str
    prompts: tuple[str, ...]
    fields: Callable[[str], dict[str, Any]]
    past_end: bool
    gap: str


CHAT = Manner(
    "/v1/chat/completions",
    CHAT_PROMPTS,
    lambda prompt: {"messages": [{"role": "user", "content": prompt}]},
    past_end=False,
    gap="\n\n",
)
COMPLETION = Manner("/v1/completions", CODE_PROMPTS, lambda prompt: {"prompt": prompt}, past_end=True, gap="")


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """A request to every target. speculation: value of the request's field."""

    manner: Manner
    prompt: str
    max_tokens: int
    speculation: str | dict[str, int] = "auto"

    def body(self, model: str) -> dict[str, Any]:
        """Greedy, streamed, with the usage at the end."""
        fixed = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        own = {"model": model, "max_tokens": self.max_tokens, "speculation": self.speculation}
        return own | fixed | self.manner.fields(self.prompt) | {"ignore_eos": self.manner.past_end}


def manner_of(config: AppConfig) -> Manner:
    """Chat if the chat template of every target opens an answer."""
    from api.chat import opens_answers
    from model.files import resolve
    from model.tokenizer import load_tokenizer

    tokenizers = (load_tokenizer(resolve(target.path)) for target in config.targets)
    return CHAT if all(map(opens_answers, tokenizers)) else COMPLETION
