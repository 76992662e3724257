"""The tokenizer of a GGUF file as a HF tokenizer that gives llama.cpp's ids.

llama.cpp knows two kinds: byte-level BPE with the file's merges ("gpt2"), and sentencepiece ("llama"), which merges
the pair whose token has the highest score. The second is BPE too, with merges in the order of scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from model.gguf.header import GgufHeader
from model.gguf.splits import Splits, splits_of
from model.gguf.vocabulary import TokenKind, Vocabulary, read_vocabulary
from protocol.errors import ConfigError, UnsupportedModel

SPACE = "▁"


def build_tokenizer(header: GgufHeader) -> Tokenizer:
    """Raises UnsupportedModel for a kind or a pre-tokenizer that is not known, ConfigError for a damaged one."""
    vocabulary, kind = read_vocabulary(header), header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        splits = splits_of(str(header.metadata.get("tokenizer.ggml.pre") or "default"))
        tokenizer, adds_bos = _byte_level(header, vocabulary, splits), splits.adds_bos
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(header, vocabulary), True
    else:
        raise UnsupportedModel(
            f"{header.path} has a tokenizer of the kind {kind!r} (tokenizer.ggml.model); supported are gpt2 and llama: "
            "give the model's HF checkpoint"
        )
    matched = [index for index in vocabulary.ids.values() if vocabulary.is_matched_whole(index)]
    tokenizer.add_tokens(
        [AddedToken(vocabulary.tokens[i], normalized=False, special=vocabulary.is_control(i)) for i in matched]
    )
    _add_ends(header.path, tokenizer, vocabulary, vocabulary.flag("add_bos_token", adds_bos))
    return tokenizer


def tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template."""
    vocabulary = read_vocabulary(header)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, index in special_ids(header, vocabulary).items():
        config |= {} if index is None else {f"{name}_token": vocabulary.tokens[index]}
    template = header.metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if template else {})


def special_ids(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, int | None]:
    """The ids of bos, eos, unk and pad; where the file names none, llama.cpp's."""
    defaults = (1, 2, 0) if header.metadata.get("tokenizer.ggml.model") == "llama" else (None, None, None)
    names = zip(("bos", "eos", "unknown"), defaults, strict=True)
    bos, eos, unknown = (vocabulary.special(name, default) for name, default in names)
    return {"bos": bos, "eos": eos, "unk": unknown, "pad": vocabulary.special("padding")}


def _byte_level(header: GgufHeader, vocabulary: Vocabulary, splits: Splits) -> Tokenizer:
    stored = header.metadata.get("tokenizer.ggml.merges")
    if not isinstance(stored, list):
        raise ConfigError(f"{header.path} holds no merges (tokenizer.ggml.merges); convert the model again")
    ids = vocabulary.ids
    pairs = (_cut(merge) for merge in stored)
    merges = [pair for pair in pairs if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids]
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=splits.whole_words))
    tokenizer.pre_tokenizer = splits.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cut(merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")
    return merge[0] + left, right


def _sentencepiece(header: GgufHeader, vocabulary: Vocabulary) -> Tokenizer:
    scores = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise ConfigError(f"{header.path} holds no scores of its tokens; convert the model again")
    unknown = special_ids(header, vocabulary)["unk"]
    name = None if unknown is None else vocabulary.tokens[unknown]
    merges = list(_merges_by_score(vocabulary, scores))
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, unk_token=name, fuse_unk=True, byte_fallback=True))
    prefix = vocabulary.flag("add_space_prefix", True)
    starts = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*starts, normalizers.Replace(" ", SPACE)])
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, scores: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Every way to put a token together from two others, highest score first, then by where it is cut."""
    kinds = (TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)
    parts = {token: index for token, index in vocabulary.ids.items() if vocabulary.kinds[index] in kinds}
    for token in sorted(parts, key=lambda token: -scores[parts[token]]):
        for cut in range(1, len(token)):
            if token[:cut] in parts and token[cut:] in parts:
                yield token[:cut], token[cut:]


def _add_ends(path: Path, tokenizer: Tokenizer, vocabulary: Vocabulary, adds_bos: bool) -> None:
    """Makes a prompt begin with BOS and end with EOS where the file says so."""
    defaults = (1, 2) if vocabulary.metadata.get("tokenizer.ggml.model") == "llama" else (None, None)
    wanted = (adds_bos, vocabulary.flag("add_eos_token", False))
    around: list[tuple[str, int]] = []
    pieces = []
    for name, default, add in zip(("bos", "eos"), defaults, wanted, strict=True):
        index = vocabulary.special(name, default)
        if add and index is None:
            raise ConfigError(f"{path} says that prompts have {name}, but names no such token; convert the model again")
        around += [(vocabulary.tokens[index], index)] if add and index is not None else []
        pieces.append([vocabulary.tokens[index]] if add and index is not None else [])
    if around:
        single = [*pieces[0], "$A", *pieces[1]]
        pair = [*pieces[0], "$A:0", "$B:1", *pieces[1]]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=around)
