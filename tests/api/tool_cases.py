"""Tools, conversations with calls, and answers that call, in the forms of three families."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from api.backend import ModelCard
from api.control import ControlTokens
from tests.api.api_twins import CORPUS, ScriptedBackend, byte_level, card, says

HEAD = "{% if tools %}<|bos|>{{ tools | tojson }}<|eos|>{% endif %}{% for m in messages %}<|bos|>{{ m.role }}"
HEAD += "{% if m.role == 'tool' %}({{ m.name }} {{ m.tool_call_id }}){% endif %}: {{ m.content }}"
HEAD += "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|eos|>{% endfor %}"
HEAD += "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
HERMES, LLAMA = HEAD + "{# <tool_call> #}", HEAD + "{# <|python_tag|> #}"
MISTRAL = HEAD + "{# [TOOL_CALLS] #}"

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "how it is", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS: Any = [WEATHER, TIME]
QUESTION: Any = [{"role": "user", "content": "wetter in köln?"}]
CALLED: Any = [
    {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}},
    {"id": "b2", "type": "function", "function": {"name": "time", "arguments": ""}},
]
CONVERSATION: Any = [
    *QUESTION,
    {"role": "assistant", "content": None, "tool_calls": CALLED},
    {"role": "tool", "tool_call_id": "b2", "content": "noon"},
    {"role": "tool", "tool_call_id": "a1", "content": [{"type": "text", "text": "rain"}]},
]


def calls(key: str) -> tuple[str, str]:
    return f'{{"name": "weather", "{key}": {{"city": "Köln 🙂"}}}}', f'{{"name": "time", "{key}": {{}}}}'


TEXTS = {
    HERMES: "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls("arguments")),
    LLAMA: f"<|python_tag|>{'; '.join(calls('parameters'))}",
    MISTRAL: f"[TOOL_CALLS] [{', '.join(calls('arguments'))}]",
}
FORMS = pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL], ids=["hermes", "llama 3", "mistral"])


def backend_of(template: str, text: str) -> ScriptedBackend:
    return ScriptedBackend(says(text), (card(max_model_len=4096, chat_template=template),))


def tool(**function: Any) -> Any:
    return {"type": "function", "function": {"name": "f"} | function}


@cache
def mistral_card() -> ModelCard:
    """Its mark is a special token."""
    bare = byte_level([*CORPUS, TEXTS[MISTRAL]], 340)
    bare.add_special_tokens(["<|bos|>", "<|eos|>", "[TOOL_CALLS]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|eos|>")
    tokenizer.chat_template = MISTRAL
    fields: Any = {
        "tokenizer": tokenizer,
        "control": ControlTokens(tokenizer),
        "eos_token_ids": (tokenizer.eos_token_id,),
    }
    return replace(card(max_model_len=4096), vocab_size=len(tokenizer), **fields)
