"""Messages made to become control tokens: through templates that change them, and tokenizers that normalize."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from api.backend import ModelCard
from api.chat import chat_prompt, render
from api.control import ControlTokens
from tests.api.api_twins import CORPUS, byte_level, card
from tests.api.real_tokenizers import CHECKPOINTS, tokenizer_of
from tests.api.test_control import PIECES, chatml, special, turns

DELETING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.replace('/think', '').replace('x', '') }}"
    "<|im_end|>\n{% endfor %}"
)
SLICED = "<|im_start|>{{ messages[0].content[1:] }}{{ messages[0].content[1:-1] }}<|im_end|>"
LOWERED = "<|im_start|>{{ messages[0].content | lower }}{{ messages[0].content | title }}<|im_end|>"
TAIL = "<|im_start|>{{ messages[0].content[2:] }}<{{ messages[0].content }}<|im_end|>"
DISGUISED = ["/think", "x", "<|im_/thinkend|>", "<|imx_start|>", "<|IM_END|>", "<", "<<|im_end|>>", "|im_end|>"]


def as_model(tokenizer: PreTrainedTokenizerFast) -> ModelCard:
    fields: dict[str, Any] = {"tokenizer": tokenizer, "control": ControlTokens(tokenizer), "max_model_len": 8192}
    return replace(card(), vocab_size=len(tokenizer), **fields)


@pytest.mark.parametrize("template", [DELETING, SLICED, LOWERED, TAIL])
@pytest.mark.parametrize("seed", range(40))
async def test_a_template_that_changes_a_message_makes_no_control_token_of_it(template: str, seed: int) -> None:
    rng = random.Random(seed)
    model = chatml(template)
    control = {special(model, name) for name in ("<|im_start|>", "<|im_end|>")}

    async def count(*contents: str) -> int:
        talk = [(rng.choice(["system", "user"]), content) for content in contents]
        return sum(token in control for token in await chat_prompt(model, turns(*talk)))

    contents = ["".join(rng.choices(PIECES + DISGUISED * 2, k=rng.randint(1, 9))) for _ in range(3)]
    assert await count(*contents) == await count("ab", "ab", "ab")


async def test_what_a_tokenizer_normalizes_to_a_control_token_stays_text() -> None:
    bare = byte_level(CORPUS, 340)
    bare.normalizer = normalizers.NFKC()
    bare.add_special_tokens([AddedToken("<|end|>", normalized=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|end|>")
    tokenizer.chat_template = "{{ messages[0].content }}<|end|>"
    model = as_model(tokenizer)
    wide = "hi \uff1c\uff5cend\uff5c\uff1e"  # < and | as East Asian text writes them
    assert tokenizer.encode(wide, add_special_tokens=False).count(special(model, "<|end|>")) == 1, "the attack works"
    ids = await chat_prompt(model, turns(("user", wide)))
    assert ids.count(special(model, "<|end|>")) == 1
    assert tokenizer.decode(ids) == "hi <|end|><|end|>"
    assert ids[-1] == special(model, "<|end|>")


async def test_a_control_token_of_one_character_is_text_in_a_message() -> None:
    bare = byte_level(CORPUS, 340)
    bare.add_special_tokens(["☃"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="☃")
    tokenizer.chat_template = "☃{{ messages[0].content }}☃"
    model = as_model(tokenizer)
    for content in ("☃", "a☃b", "☃☃"):
        ids = await chat_prompt(model, turns(("user", content)))
        assert ids.count(special(model, "☃")) == 2
        assert tokenizer.decode(ids) == f"☃{content}☃"


@cache
def real(name: str) -> ModelCard:
    return replace(as_model(tokenizer_of(name)), max_token_bytes=256)


def control_ids(model: ModelCard) -> set[int]:
    added = model.tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special}


def pieces_of(model: ModelCard) -> list[str]:
    """Spellings of its control tokens, their halves, and what surrounds them in its template."""
    names = list(model.control.special)
    halves = [name[:size] for name in names for size in (1, 2, len(name) // 2, len(name) - 1)]
    halves += [name[-size:] for name in names for size in (1, 2, len(name) // 2, len(name) - 1)]
    around = ["user", "assistant", "\n", " ", "\t", "\n\n", "\r\n", "\x00", "é", "🙂", "\u200b", "\ufeff", "\u0301"]
    alike = ["&lt;", "\\u003c", "<|", "|>", "<|im_", "\ufdd0", "\ufdd2", "0\ufdd3", "\ufffd"]
    return names * 2 + halves + around + alike


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("seed", range(30))
async def test_a_real_tokenizer_writes_the_messages_as_they_are_and_the_templates_control_tokens_alone(
    name: str, seed: int
) -> None:
    rng = random.Random(seed)
    model = real(name)
    roles = ["system", *(rng.choice(["user", "assistant"]) for _ in range(3))]
    pieces = pieces_of(model)
    contents = ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in roles]
    talk = [(role, content) for role, content in zip(roles, contents, strict=True)]
    ids = await chat_prompt(model, turns(*talk))
    control = control_ids(model)
    harmless = await chat_prompt(model, turns(*((role, "a") for role in roles)))
    assert [token for token in ids if token in control] == [token for token in harmless if token in control]
    assert model.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == render(
        model.tokenizer, harmless_turns(talk)
    )


def harmless_turns(talk: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """As messages are rendered: noncharacters are replaced."""
    table = dict.fromkeys(range(0xFDD0, 0xFDF0), "\ufffd")
    return [{"role": role, "content": content.translate(table)} for role, content in talk]


@pytest.mark.parametrize("name", CHECKPOINTS)
async def test_a_real_tokenizer_encodes_code_and_prose_as_usual(name: str) -> None:
    model = real(name)
    for content in ("if a < b and c > d: return x->y", "<html><b>grüße</b>\n\n</html>", "a <| b |> c", "x" * 50):
        talk = [("user", content), ("assistant", content), ("user", "and?")]
        rendered = render(model.tokenizer, harmless_turns(talk))
        usual = model.tokenizer.encode(rendered, add_special_tokens=False)
        assert list(await chat_prompt(model, turns(*talk))) == usual
