"""Two vocabularies, token by token."""

from __future__ import annotations

from random import Random

import pytest

from drafters.translation import Translation, spell, translation
from model.vocabulary import Piece

ALPHABET = b"abc \xc3\xa4"


def vocabulary(*spellings: str | bytes, special: tuple[str, ...] = ()) -> dict[int, Piece]:
    """Ids in the order given, special tokens last."""
    plain = [Piece(text.encode() if isinstance(text, str) else text) for text in spellings]
    return dict(enumerate([*plain, *(Piece(name.encode(), special=True) for name in special)]))


def random_vocabulary(random: Random, size: int) -> dict[int, Piece]:
    """All bytes of the alphabet, and random texts of them."""
    single = {bytes([byte]) for byte in ALPHABET}
    longer = {bytes(random.choices(ALPHABET, k=random.randint(2, 6))) for _ in range(size)}
    spellings = [*single, *longer]
    random.shuffle(spellings)
    return dict(enumerate(map(Piece, spellings)))


def test_a_token_of_both_is_one_token_and_any_other_is_spelled() -> None:
    made = translation(vocabulary("a", "the", " house"), vocabulary("hou", " ", "se", "the", "a"))
    assert list(made.read([0, 1, 2])) == [(4,), (3,), (1, 0, 2)]
    assert made.write([3, 4]) == (1, 0)
    assert [made.shares(token) for token in range(3)] == [True, True, False]


def test_a_draft_ends_before_the_first_token_that_the_target_lacks() -> None:
    made = translation(vocabulary("a", "b"), vocabulary("b", "ab", "a"))
    assert made.write([0, 2, 1, 0]) == (1, 0)
    assert made.write([1, 0]) == ()


def test_special_tokens_meet_special_ones_of_the_same_name_only() -> None:
    target = vocabulary("<", "end", ">", special=("<end>", "<user>"))
    drafter = vocabulary("<end>", "<", "user", ">", special=("<end>",))
    made = translation(target, drafter)
    assert list(made.read([3])) == [(4,)], "never the plain text of the same spelling"
    assert list(made.read([4])) == [(1, 2, 3)], "one that the drafter lacks is plain text"
    assert made.write([4]) == (3,)
    assert made.write([0]) == ()


def test_bytes_that_no_piece_spells_and_unknown_ids_are_left_out() -> None:
    made = translation(vocabulary("aXb", b"\xc3"), vocabulary("a", "b"))
    assert list(made.read([0, 1, 99])) == [(0, 1), (), ()]
    assert not made.shares(1)
    assert made.write([7]) == ()


def test_of_two_tokens_that_spell_the_same_the_first_counts() -> None:
    made = translation(vocabulary("b", "a", "a"), vocabulary("a", "a", "b"))
    assert list(made.read([1, 2])) == [(0,), (0,)]
    assert made.write([0, 1]) == (1,)


@pytest.mark.parametrize("seed", range(30))
def test_both_sides_spell_the_same_text(seed: int) -> None:
    random = Random(seed)
    target, drafter = random_vocabulary(random, 40), random_vocabulary(random, 40)
    made = translation(target, drafter)
    text = random.choices(list(target), k=50)
    spelled = b"".join(drafter[token].spelling for tokens in made.read(text) for token in tokens)
    assert spelled == b"".join(target[token].spelling for token in text)
    drafted = random.choices(list(drafter), k=20)
    back = made.write(drafted)
    assert [target[token].spelling for token in back] == [drafter[token].spelling for token in drafted[: len(back)]]
    for token, tokens in zip(text, made.read(text), strict=True):
        assert not made.shares(token) or target[made.write(tokens)[0]].spelling == target[token].spelling


def test_a_spelling_takes_the_longest_piece_that_fits() -> None:
    assert list(spell(b"aaab", {b"a": 0, b"aa": 1, b"ab": 2}, 2)) == [1, 2]


def test_no_repr_shows_a_vocabulary() -> None:
    assert repr(translation(vocabulary("secret"), vocabulary("secret"))) == repr(Translation({}, {})) == "Translation()"
