"""`draftpool check` on a tiny family: what it tells, refuses and warns of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import printed, refused
from tests.deployments.checkpoints import config_beside, with_another_tokenizer

FIXED = "{policy: fixed, depth: 4, length: 4}"


CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8, speculation: {policy: fixed, depth: 4, length: 4}}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 8}
"""


def write(family: Path, text: str, tmp_path: Path) -> str:
    return str(config_beside(family, tmp_path, text))


def test_check_describes_what_would_be_served(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> None:
    assert printed(capsys, "check", write(family, CONFIG, tmp_path)).splitlines() == [
        "target large: llama, 4 layers, fp32, depth 4, length 4",
        "pool: 1 replicas, fp32, exits 2, 4",
        "ok",
    ]


@pytest.mark.parametrize(
    ("speculation", "words"),
    [
        ("{}", "goodput, any exit, length 0 to 12, in turn or ahead\n"),
        ("{ahead: off}", "goodput, any exit, length 0 to 12\n"),
        ("{policy: ema}", "ema, any exit, length 0 to 12"),
        ("{exits: [2, 4], length: 6}", "goodput, exits 2, 4, length 0 to 6, in turn or ahead\n"),
        ("{policy: fixed, depth: 2, ahead: on}", "depth 2, length 4, drafted ahead\n"),
        ("off", "no speculation"),
    ],
)
def test_check_describes_how_each_target_speculates(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, speculation: str, words: str
) -> None:
    path = write(family, CONFIG.replace(FIXED, speculation), tmp_path)
    assert f"fp32, {words}" in printed(capsys, "check", path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("depth: 4", "depth: 3", "speculation of target large asks for depth 3; the drafter has the exits 2, 4"),
        (
            "length: 4}}\npool: {path: drafter",
            "length: 4, ahead: on}}\npool: {path: ./other",
            "target large is to be drafted for while it verifies, but the pool has another tokenizer",
        ),
        (FIXED, "{exits: [2, 3]}", "speculation of target large asks for depth 3; the drafter has the exits 2, 4"),
        ("page_size: 16, kv_mb: 8, spec", "max_model_len: 9999, spec", "max_model_len 9999 of target large exceeds"),
        ("path: large", "path: ./nowhere", "nowhere is not a directory"),
        ("path: large", "path: ./cut", "model.safetensors is damaged or cut short"),
        ("path: large", "path: ./mute", "the chat template of target large does not work: TemplateSyntaxError: "),
        ("path: drafter", "path: ./deeper", "lacks tensors that its config.json promises: model.layers.4."),
        ("page_size: 16, kv_mb: 8, spec", "page_size: 99999, kv_mb: 8, spec", "target large: kv_mb 8 holds 4096 pos"),
        ("drafter, dtype: fp32, page_size: 16", "drafter, dtype: fp32, page_size: 99999", "pool: kv_mb 8 holds"),
    ],
)
def test_check_refuses_what_does_not_fit_together(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with_another_tokenizer(family / "drafter", tmp_path / "other")
    cut = shutil.copytree(family / "large", tmp_path / "cut") / "model.safetensors"
    os.truncate(cut, cut.stat().st_size - 8)
    mute = shutil.copytree(family / "large", tmp_path / "mute") / "chat_template.jinja"
    mute.write_text("{% for message in messages %}")
    deeper = shutil.copytree(family / "drafter", tmp_path / "deeper") / "config.json"
    deeper.write_text(deeper.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    assert message in refused(capsys, "check", write(family, CONFIG.replace(old, new), tmp_path))


def test_check_tells_that_a_drafter_of_another_tokenizer_drafts_in_turn(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    with_another_tokenizer(family / "drafter", tmp_path / "other")
    text = CONFIG.replace(FIXED, "{}").replace("path: drafter", "path: ./other")
    told = printed(capsys, "check", write(family, text, tmp_path)).splitlines()
    assert told[0].endswith("goodput, any exit, length 0 to 12")
    assert told[2].startswith("target large: the drafter has another tokenizer, and ")


def test_check_warns_of_memory_for_less_than_a_whole_context(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    long = shutil.copytree(family / "large", tmp_path / "long") / "config.json"
    long.write_text(long.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 20000'))
    text = CONFIG.replace("path: large", "path: ./long")
    first, *_ = printed(capsys, "check", write(family, text, tmp_path)).splitlines()
    assert first.startswith("warning: kv_mb 8 of target large holds 4096 positions, fewer than the 20000 of its max_")
    (tmp_path / "app.yaml").write_text(text.replace("path: ./long", "path: ./long, max_model_len: 4096"))
    assert "warning" not in printed(capsys, "check", str(tmp_path / "app.yaml"))


def changed(family: Path, folder: Path, name: str, **changes: object) -> Path:
    """A copy of large with other entries in one of its files; None takes one out."""
    copy = shutil.copytree(family / "large", folder / "copy")
    values = json.loads((copy / name).read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    (copy / name).write_text(json.dumps(kept))
    return copy


def checked(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> str:
    """The first line that check says of the copy."""
    path = write(family, CONFIG.replace("path: large", "path: ./copy"), tmp_path)
    return printed(capsys, "check", path).splitlines()[0]


def test_check_warns_if_the_files_name_different_end_tokens(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    changed(family, tmp_path, "generation_config.json", eos_token_id=7)
    first = checked(capsys, family, tmp_path)
    assert first.startswith("warning: target large: ")
    assert first.endswith(
        "differs in which token ends an answer: 7 by its configs, 1 by its tokenizer; here each of 7, 1 does"
    )


def test_check_warns_of_tokens_without_an_embedding(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    copy = changed(family, tmp_path, "tokenizer_config.json", extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    assert "has 2 tokens beyond the 320 of the embedding (<|im_start|>, <|im_end|>)" in checked(
        capsys, family, tmp_path
    )
    (copy / "chat_template.jinja").write_text("<|im_start|>{{ messages[0].content }}")
    _, second, *_ = printed(capsys, "check", str(tmp_path / "app.yaml")).splitlines()
    assert "writes <|im_start|>, so every chat request is refused" in second


def test_check_renders_the_chat_template(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> None:
    copy = changed(family, tmp_path, "tokenizer_config.json")
    path = write(family, CONFIG.replace("path: large", "path: ./copy"), tmp_path)
    for template, complaint in [
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{% for message in messages %}{{ message.content }}", "Unexpected end of template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ]:
        (copy / "chat_template.jinja").write_text(template)
        error = refused(capsys, "check", path)
        assert error.startswith("draftpool: the chat template of target large does not work: ")
        assert complaint in error


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GemmaTokenizer"])
def test_check_accepts_another_tokenizer_class(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, name: str
) -> None:
    changed(family, tmp_path, "tokenizer_config.json", tokenizer_class=name)
    assert "warning" not in checked(capsys, family, tmp_path)
