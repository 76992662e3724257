"""What tokens spell, for vocabularies of both kinds."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from drafters.translation import Translation, translation
from model.vocabulary import Piece, Spellings, pieces
from tests.model.gguf.test_tokenizer import CASES, TEXTS, tokenizer_of

BYTE_LEVEL, SENTENCEPIECE = "smollm", "sentencepiece without a space in front"


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCEPIECE])
def test_the_spellings_of_a_text_are_its_bytes(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, CASES[name])
    known = pieces(tokenizer)
    assert set(known) == set(tokenizer.get_vocab().values())
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(known[token].spelling for token in ids) == text.encode()


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCEPIECE])
def test_one_at_a_time_they_are_the_same(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(tmp_path, CASES[name])
    spellings = Spellings(tokenizer)
    assert {token: spellings[token] for token in pieces(tokenizer)} == pieces(tokenizer)
    assert spellings[len(tokenizer) + 5] == Piece(b"")


def test_tokens_that_mean_something_by_name_are_special(tmp_path: Path) -> None:
    known = pieces(tokenizer_of(tmp_path, CASES[BYTE_LEVEL]))
    assert {piece.spelling for piece in known.values() if piece.special} >= {b"<|im_start|>", b"<|im_end|>"}
    assert Piece(b"the") in known.values()


def test_two_tokenizers_of_different_kinds_read_each_others_text(tmp_path: Path) -> None:
    tokenizers = {name: tokenizer_of(tmp_path / name, CASES[name]) for name in (BYTE_LEVEL, SENTENCEPIECE)}
    known = {name: pieces(tokenizer) for name, tokenizer in tokenizers.items()}
    for target, drafter in permutations(tokenizers):
        made: Translation = translation(known[target], known[drafter])
        for text in TEXTS:
            ids = tokenizers[target].encode(text, add_special_tokens=False)
            spelled = [known[drafter][own].spelling for tokens in made.read(ids) for own in tokens]
            assert b"".join(spelled) == text.encode()
