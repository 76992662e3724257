from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from api.text import Detokenizer, TextStream, decode, until_stop
from tests.api.api_twins import byte_level

TEXT = "grüße aus köln, naïve café 日本語 テスト 🙂🙃 👩‍👩‍👧 def add(a, b):\n    return a + b\n"
SEEDS = range(60)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level([TEXT], 300, ["<|eos|>"]), eos_token="<|eos|>")


def cut(items: Any, rng: random.Random) -> Iterator[Any]:
    at = 0
    while at < len(items):
        size = rng.choice([1, 1, 2, 3, 9])
        yield items[at : at + size]
        at += size


def stream(tokenizer: PreTrainedTokenizerFast, runs: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(run) for run in runs), detokenizer.finish()]


@pytest.mark.parametrize("seed", SEEDS)
def test_pieces_of_any_cut_join_to_the_whole_text_and_hold_whole_characters(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    rng = random.Random(seed)
    text = "".join(rng.sample(TEXT.split(" "), k=6))
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, list(cut(ids, rng)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("seed", SEEDS)
def test_pieces_join_to_the_whole_text_when_tokens_are_random_and_bytes_are_broken(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    rng = random.Random(seed)
    ids = [rng.randrange(len(tokenizer)) for _ in range(80)]
    assert "".join(stream(tokenizer, list(cut(ids, rng)))) == decode(tokenizer, ids)


def test_a_character_comes_out_with_its_last_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("a𝄞b")  # the clef is in no merge: four tokens
    assert stream(tokenizer, [[token] for token in ids]) == ["a", "", "", "", "𝄞", "b", ""]


def test_a_character_that_never_comes_whole_ends_as_a_replacement_character(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = tokenizer.encode("a𝄞")[:-1]
    assert stream(tokenizer, [ids]) == ["a", "\ufffd"]


def test_a_replacement_character_in_the_text_itself_comes_through(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("a\ufffdb\ufffd")
    assert "".join(stream(tokenizer, [[token] for token in ids])) == "a\ufffdb\ufffd"


def test_special_tokens_have_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    eos = tokenizer.eos_token_id
    ids = [eos, *tokenizer.encode("é"), eos, *tokenizer.encode("z"), eos]
    assert "".join(stream(tokenizer, [[token] for token in ids])) == "éz"


class Counting:
    """How many tokens were decoded, and how many at once at most."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.total = self.longest = 0

    def decode(self, token_ids: list[int], skip_special_tokens: bool, **options: bool) -> str | list[str]:
        self.total, self.longest = self.total + len(token_ids), max(self.longest, len(token_ids))
        return self._tokenizer.decode(token_ids, skip_special_tokens, **options)


BYTES = {"lone continuation": [0x80], "endless beginnings": [0xE2, 0x82], "one short": [0xF0, 0x9F, 0x99]}


def byte_ids(tokenizer: PreTrainedTokenizerFast, values: Sequence[int]) -> list[int]:
    spelled = {chr(256 + rank): value for rank, value in enumerate([*range(33), *range(127, 161), 173])}
    letters = {value: letter for letter, value in spelled.items()}
    return [tokenizer.convert_tokens_to_ids(letters.get(value, chr(value))) for value in values]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("what", ["words", "special", "outside", "replacement", *BYTES])
def test_a_token_costs_the_same_however_many_go_before_it(
    tokenizer: PreTrainedTokenizerFast, what: str, size: int
) -> None:
    repeated = {
        "words": tokenizer.encode("plain words only, "),
        "special": [tokenizer.eos_token_id],
        "outside": [len(tokenizer) + 7],
        "replacement": tokenizer.encode("\ufffd"),
        **{name: byte_ids(tokenizer, values) for name, values in BYTES.items()},
    }[what]
    ids = [*tokenizer.encode("x = "), *repeated * (1000 // len(repeated)), *tokenizer.encode("é!")]
    counting = Counting(tokenizer)
    detokenizer = Detokenizer(counting)
    pieces = [detokenizer.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert counting.longest <= 80
    assert counting.total <= 50 * len(ids)
    assert "".join([*pieces, detokenizer.finish()]) == decode(tokenizer, ids)


def test_broken_bytes_come_out_before_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token]) for token in byte_ids(tokenizer, [0x80]) * 40]
    assert 30 <= len("".join(pieces)) < 40


@pytest.fixture(scope="module", params=["Strip", "Metaspace"])
def stripping(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Like Llama-2's: a space is part of the word behind it, bytes stand for what is in no word, and the decoder drops
    the first space."""
    words = [
        "<unk>",
        "</s>",
        *(f"<0x{value:02X}>" for value in range(256)),
        "\u2581France",
        "\u2581is",
        "\u2581Paris",
        ".",
    ]
    bare = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    space = decoders.Metaspace() if request.param == "Metaspace" else decoders.Replace("\u2581", " ")
    strip = [] if request.param == "Metaspace" else [decoders.Strip(" ", 1, 0)]
    bare.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), *strip])
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("num_before", [0, 1, 40])
@pytest.mark.parametrize("size", [1, 2, 9])
def test_prompt_and_text_join_to_the_text_of_both(
    stripping: PreTrainedTokenizerFast, num_before: int, size: int
) -> None:
    euro = [f"<0x{value:02X}>" for value in "€".encode()]
    words = ["\u2581France"] * num_before + ["\u2581is", *euro, "</s>", "\u2581Paris", "\u2581is", *euro * 3, "."]
    ids = stripping.convert_tokens_to_ids(words)
    for cut_at in range(num_before + 1, len(ids)):
        prompt, rest = ids[:cut_at], ids[cut_at:]
        detokenizer = Detokenizer(stripping, prompt)
        text = "".join(detokenizer.push(rest[at : at + size]) for at in range(0, len(rest), size))
        shown = decode(stripping, prompt).rstrip("\ufffd")
        assert shown + text + detokenizer.finish() == decode(stripping, ids), cut_at


def test_a_prompt_that_ends_inside_a_character_is_made_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("so far: 𝄞b")
    for num_open in (1, 2, 3):
        at = len(ids) - 5 + num_open
        detokenizer = Detokenizer(tokenizer, ids[:at])
        assert [detokenizer.push([token]) for token in ids[at:]] == [""] * (3 - num_open) + ["𝄞", "b"]
    alone = Detokenizer(tokenizer, ids[-5:-4])
    assert alone.push(ids[-4:]) == "𝄞b"


def test_broken_text_at_the_end_of_a_prompt_is_not_repeated(tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt in (tokenizer.encode("a\ufffd"), tokenizer.encode("a𝄞")[:-1]):
        detokenizer = Detokenizer(tokenizer, prompt)
        assert detokenizer.push(tokenizer.encode("b")) + detokenizer.finish() == "b"
        assert Detokenizer(tokenizer, prompt).finish() == ""


def first_stop(text: str, stops: Sequence[str]) -> str | None:
    """The oracle: go character by character; at the first that completes a stop string, cut before that string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return None


@pytest.mark.parametrize("seed", range(300))
def test_a_text_ends_at_the_first_stop_string_however_it_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", weights=[2, 1], k=30))
    stops = ["".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
    out, held, stopped = "", "", False
    for piece in cut(text, rng):
        ready, held, stopped = until_stop(held + piece, stops)
        out += ready
        if stopped:
            break
    expected = first_stop(text, stops)
    assert stopped == (expected is not None)
    if stopped:
        assert (out, held in stops) == (expected, True)
    else:
        assert out + held == text


def test_only_a_tail_that_may_become_a_stop_string_is_held_back() -> None:
    stops = ["\n\nclass", "END"]
    assert until_stop("x = 1\n", stops) == ("x = 1", "\n", False)
    assert until_stop("\ny = E", stops) == ("\ny = ", "E", False)
    assert until_stop("EN", stops) == ("", "EN", False)
    assert until_stop("END of it", stops) == ("", "END", True)


@pytest.mark.parametrize("seed", SEEDS)
def test_where_a_stop_string_ends_a_stream_does_not_depend_on_the_runs(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    rng = random.Random(seed)
    ids = tokenizer.encode("".join(rng.sample(TEXT.split(" "), k=6)))
    whole = decode(tokenizer, ids)
    at = rng.randrange(len(whole) - 2)
    stops = [whole[at : at + rng.randint(1, 3)], "never"]

    def outcome(runs: Sequence[Sequence[int]]) -> tuple[str, int]:
        text, count, stream = "", 0, TextStream(tokenizer, stops)
        for number, run in enumerate(runs):
            piece = stream.push(run, last=number == len(runs) - 1)
            text, count = text + piece.text, count + piece.num_tokens
            if piece.stopped:
                break
        return text, count

    assert outcome(list(cut(ids, rng))) == outcome([[token] for token in ids])
    assert outcome([ids])[0] == first_stop(whole, stops)


def test_a_stream_without_a_stop_in_sight_gives_back_what_it_held(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer, ["return b"])
    ids = tokenizer.encode("return a + b, return ")
    pieces = [stream.push([token], last=number == len(ids) - 1) for number, token in enumerate(ids)]
    assert "".join(piece.text for piece in pieces) == "return a + b, return "
    assert not any(piece.stopped for piece in pieces)
