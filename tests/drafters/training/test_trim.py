"""`draftpool trim`: a drafter with fewer rows drafts what the whole one would if the other tokens did not exist."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from transformers import AutoModelForCausalLM

from cli.main import main
from cli.trim_command import doubts
from drafters.head import count_tokens
from drafters.manifest import Manifest, vocabulary_hash
from drafters.training.config import Corpus
from drafters.trim import count_corpus, head_tokens, read_trimmable, write_trimmed
from drafters.trim_choice import Head, TrimCosts, predict
from drafters.trim_cost import measure, timed
from model.config import read_config
from model.decoder import Decoder
from model.execution import Execution
from model.files import resolve
from model.load import WeightFormat, check_weights, load_decoder
from protocol.errors import ConfigError
from protocol.request import SamplingParams
from tests.cli.commands import printed, refused
from tests.drafters.training.conftest import TEXT
from tests.model.families import EXECUTIONS, make_checkpoint
from tests.model.gguf.files import write_gguf
from tests.model.gguf.test_export import make_exact
from tests.reference.drafting import draft_from_scratch

KEPT = (1, 2, 3, 17, 40, 41, 77, 99, 130, 159)
SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, seed=7),
    SamplingParams(temperature=1.3, seed=2**64 - 1, top_k=6, top_p=0.9),
]


class Masked:
    """A decoder for which all other tokens are impossible."""

    def __init__(self, decoder: Decoder, kept: Sequence[int]) -> None:
        self._decoder = decoder
        self._others = sorted(set(range(decoder.config.vocab_size)) - set(kept))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        logits = self._decoder.logits(hidden, rows).clone()
        logits[:, self._others] = -torch.inf
        return logits


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_trimmed_drafter_drafts_as_if_the_other_tokens_did_not_exist(
    family: str, execution: Execution, tmp_path: Path
) -> None:
    """With heads of their own and tied ones."""
    folder = make_checkpoint(family, tmp_path / "full", seed=5)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}}))
    assert_drafts_as_if_masked(trimmed(folder, tmp_path / "trimmed"), folder, execution)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("stored", [GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_trimmed_gguf_file_keeps_its_blocks(
    family: str, stored: GGMLQuantizationType, execution: Execution, tmp_path: Path
) -> None:
    checkpoint = make_exact(family, tmp_path / "hf")
    quantize = gguf.quants.quantize
    file = write_gguf(checkpoint, tmp_path / "whole.gguf", store=lambda _, weights: (quantize(weights, stored), stored))
    folder, directory = resolve(str(file)), trimmed(file, tmp_path / "trimmed")
    assert_drafts_as_if_masked(directory, folder, execution, depths=(2, 3))
    assert Manifest.load(directory) == Manifest.load(folder)
    assert read_config(directory).head_token_ids == KEPT
    with pytest.raises(ConfigError, match="is trimmed already"):
        read_trimmable(directory)


def trimmed(checkpoint: Path, out: Path) -> Path:
    """The directory of the checkpoint with a head of KEPT."""
    write_trimmed(str(checkpoint), out, KEPT)
    return resolve(str(out))


def test_a_trimmed_folder_may_move_with_its_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "here" / "whole")
    trimmed(tmp_path / "here" / "whole", tmp_path / "here" / "trimmed")
    shutil.move(tmp_path / "here", tmp_path / "there")
    directory = resolve(str(tmp_path / "there" / "trimmed"))
    assert read_config(directory).head_token_ids == KEPT
    check_weights(directory)
    assert vocabulary_hash(directory) == Manifest.load(directory).vocabulary_hash == vocabulary_hash(checkpoint)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "draftpool.json cannot be read"),
        ('{"exits": [2]}', "holds no weights, and its draftpool.json names no checkpoint; trim it again"),
        ('{"checkpoint": ".", "head_token_ids": [1, 2]}', "which is trimmed already; name the checkpoint behind it"),
        ('{"checkpoint": "./nowhere", "head_token_ids": [1, 2]}', "nowhere is not a directory"),
    ],
)
def test_a_folder_without_weights_that_names_no_checkpoint_is_refused(
    tmp_path: Path, manifest: str, message: str
) -> None:
    (tmp_path / "draftpool.json").write_text(manifest)
    with pytest.raises(ConfigError, match=message):
        resolve(str(tmp_path))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("model.gguf.unpack", "model.trimmed"):
        monkeypatch.setattr(f"{module}.cache_directory", lambda: tmp_path / "cache")


def assert_drafts_as_if_masked(
    trimmed_folder: Path, folder: Path, execution: Execution, depths: Sequence[int] = (2, 4)
) -> None:
    own, whole = (load_decoder(path, dtype=torch.float32, execution=execution) for path in (trimmed_folder, folder))
    masked: Any = Masked(whole, KEPT)
    for sampling in SAMPLINGS:
        for depth in depths:
            drafts = [draft_from_scratch(decoder, [5, 9, 13], 12, depth, sampling) for decoder in (own, masked)]
            (tokens, certain), (expected, certain_too) = (zip(*draft, strict=True) for draft in drafts)
            assert tokens == expected
            assert certain == pytest.approx(certain_too, abs=1e-4)
            assert set(tokens) <= set(KEPT)


def command(checkpoint: Path, out: Path, corpus: Path, *options: str) -> tuple[str, ...]:
    return ("trim", str(checkpoint), str(out), "--corpus", str(corpus), *options)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(3)))
    return path


def test_a_folder_is_written_with_the_tokens_of_the_corpus(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    folder, out = shutil.copytree(checkpoint, tmp_path / "drafter"), tmp_path / "out"
    Manifest((2, 4), vocabulary_hash(folder), ("large",)).save(folder)
    counts = count_corpus(folder, read_config(folder), Corpus(files=[corpus]))
    occurring = int((counts > 0).sum())
    assert "100.00% of what was counted" in printed(capsys, *command(folder, out, corpus, "--size", str(occurring)))
    config = read_config(resolve(str(out)))
    assert config.head_token_ids == tuple(counts.nonzero()[0].tolist())
    assert not config.tied_embeddings
    assert Manifest.load(resolve(str(out))) == Manifest.load(folder)
    half = tmp_path / "half"
    printed(capsys, *command(folder, half, corpus, "--size", str(occurring // 2)))
    kept = read_config(resolve(str(half))).head_token_ids
    assert len(kept) == occurring // 2
    assert min(counts[list(kept)]) >= max(counts[sorted(set(config.head_token_ids) - set(kept))])


def test_tokens_that_end_an_answer_are_always_kept(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "drafter")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 100]}')
    config = read_config(folder)
    counts = count_tokens([7] * 5 + [8] * 4, config.vocab_size)
    assert head_tokens(folder, config, counts, 3) == (2, 7, 100)
    with pytest.raises(ConfigError, match=f"1 rows are no trimmed head of .*; give 2 to {config.vocab_size - 1}"):
        head_tokens(folder, config, counts, 1)


def test_what_cannot_be_trimmed_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    vocab, out = read_config(checkpoint).vocab_size, tmp_path / "out"
    for size in (vocab, vocab + 1):
        message = refused(capsys, *command(checkpoint, out, corpus, "--size", str(size)))
        assert f"{size} rows are no trimmed head of" in message
    assert "--size auto needs --target" in refused(capsys, *command(checkpoint, out, corpus))
    assert "argument --size: '1' is not" in refused(capsys, *command(checkpoint, out, corpus, "--size", "1"))
    assert "nothing matches" in refused(capsys, *command(checkpoint, out, tmp_path / "none.txt", "--size", "50"))
    assert not out.exists()
    printed(capsys, *command(checkpoint, out, corpus, "--size", "50"))
    assert "is not empty; name a new folder" in refused(capsys, *command(checkpoint, out, corpus, "--size", "50"))
    with pytest.raises(ConfigError, match="trimmed already"):
        read_trimmable(resolve(str(out)))


def test_every_size_and_width_is_measured(checkpoint: Path) -> None:
    costs = measure(checkpoint, 2, [32, 64], checkpoint, torch.float32, WeightFormat.STORED, repeat=2)
    assert costs.head_ms.keys() == {32, 64}
    assert min(costs.layers_ms, *costs.verify_ms) > 0 <= min(costs.head_ms.values())
    assert len(costs.verify_ms) == 9


def test_calls_are_timed_in_turn_behind_turns_that_warm_up() -> None:
    order: list[str] = []
    clock = iter(range(100))
    calls = [lambda: order.append("a"), lambda: order.append("b") or next(clock)]
    assert timed(calls, 3, lambda: float(next(clock))) == [[1000.0] * 3, [2000.0] * 3]
    assert order == ["a", "b"] * 5


@pytest.mark.parametrize(("times", "num_warnings"), [((0.1, 0.2, 0.4), 0), ((0.1, 0.0, 0.4), 1)])
def test_times_that_do_not_grow_with_the_rows_are_doubted(times: tuple[float, ...], num_warnings: int) -> None:
    heads = tuple(Head(size, 1.0, ms) for size, ms in enumerate(times, 10))
    assert len(list(doubts(predict(TrimCosts(heads, 1.0, 0.7, (5.0, 6.0)))))) == num_warnings


def test_the_fastest_size_is_written_unless_it_is_the_full_head(
    capsys: pytest.CaptureFixture[str], corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The model has 4096 tokens, of which the tokenizer knows a part."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.resize_token_embeddings(4096)
    folder, out = shutil.copytree(checkpoint, tmp_path / "drafter"), tmp_path / "out"
    model.save_pretrained(folder)
    options = ("--target", str(folder), "--dtype", "fp32", "--repeat", "9")
    capsys.readouterr()
    status = main(command(folder, out, corpus, *options))
    text = capsys.readouterr().out
    assert all(cell in text for cell in ("2048", "4096", "100.00%"))
    written = len(read_config(resolve(str(out))).head_token_ids) if out.exists() else 4096
    assert (status, written) in ((0, 2048), (1, 4096)), "which one is the fastest, so short a time does not say"
