from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console
from tqdm import tqdm

from cli.main import COMMANDS, main
from cli.serve_command import started
from deployments.config import AppConfig, load_config
from tests.deployments.checkpoints import config_beside, make_model

MARK = "DRAFTPOOL_TEST_RUN"
FIXED = "{policy: fixed, depth: 4, length: 4}"
CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8, speculation: {policy: fixed, depth: 4, length: 4}}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 8}
"""


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(str(ended.code))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "one clear line"
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("serve",), "the following arguments are required: CONFIG"),
        (("serve", "no.yaml"), "cannot read no.yaml: No such file or directory; name an existing YAML file"),
        (("check", "no.yaml"), "cannot read no.yaml"),
        (("check", "a", "b"), "unrecognized arguments: b"),
        (("trace", "http://127.0.0.1:1"), "no server tells its rounds at http://127.0.0.1:1: "),
        (("trace", "nowhere"), "no server tells its rounds at nowhere: unknown url type"),
    ],
)
def test_a_usage_error_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)


GENERATE = ("generate", "--target", "none", "--prompt", "a")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batch", "0", "argument --batch: '0' is not a whole number of 1 or more"),
        ("--page-size", "0", "--page-size: '0' is not"),
        ("--threads", "0", "--threads: '0' is not"),
        ("--kv-mb", "0", "--kv-mb: '0' is not"),
        ("--max-tokens", "0", "--max-tokens: '0' is not"),
        ("--length", "-1", "--length: '-1' is not a whole number from 0 to 64"),
        ("--length", "many", "--length: 'many' is not a whole number"),
        ("--depth", "x", "--depth: 'x' is no depth; give an exit of the drafter"),
        ("--depth", "0", "--depth: '0' is no depth"),
        ("--seed", str(1 << 64), "--seed: seed 18446744073709551616 does not fit 64 bits"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert message in refused(capsys, *GENERATE, option, value)


def tiny(family: Path, *arguments: str) -> tuple[str, ...]:
    fixed = ("--dtype=fp32", "--threads=1", "--page-size=16", "--kv-mb=8", "--max-tokens=6", "--ignore-eos")
    return ("generate", "--target", str(family / "large"), *fixed, *arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x " * 600}, "has 1200 tokens and this model holds 512"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "b", "seed": 1 << 64}, "does not fit 64 bits"),
        ({"prompt": "b", "seed": True}, '"seed" must be a whole number'),
        ({"text": "b"}, 'needs an object with a "prompt" string'),
    ],
    ids=str,
)
def test_a_prompt_that_cannot_be_is_named_by_its_line(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, line: dict[str, object], message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n\n" + json.dumps(line) + "\n")
    capsys.readouterr()
    error = refused(capsys, *tiny(family, "--prompts", str(path)))
    assert error.startswith(f"draftpool: {path}:3")
    assert message in error


def test_files_and_memory_that_are_not_there_are_said_so(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    capsys.readouterr()
    missing = refused(capsys, *tiny(family, "--prompts", str(tmp_path / "none.jsonl")))
    assert "none.jsonl: No such file or directory; name an existing file" in missing
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "gr\xfc\xdfe"}')
    assert "is not UTF-8" in refused(capsys, *tiny(family, "--prompts", str(tmp_path / "latin.jsonl")))
    assert "no page of page_size 99999" in refused(capsys, *tiny(family, "--prompt", "a", "--page-size", "99999"))


def completed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(arguments) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_negative_seed_is_its_twos_complement_as_over_http(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    sampled = tiny(family, "--json", "--temperature=1")
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "seed": -1}\n{"prompt": "a\u2028", "seed": 0}')
    in_file, _ = completed(capsys, *sampled, "--prompts", str(path))
    (negative,) = completed(capsys, *sampled, "--prompt", "a", "--seed", "-1")
    (unsigned,) = completed(capsys, *sampled, "--prompt", "a", "--seed", str((1 << 64) - 1))
    assert negative["token_ids"] == unsigned["token_ids"] == in_file["token_ids"]


def test_loading_for_long_shows_a_bar(
    capsys: pytest.CaptureFixture[str], family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "loading" not in generated_errors(capsys, family)

    monkeypatch.setattr("cli.generate.BAR_AFTER_S", 0)
    monkeypatch.setattr("cli.generate.tqdm", partial(tqdm, mininterval=0))  # each step is drawn
    assert "loading large: 100%" in generated_errors(capsys, family)


def generated_errors(capsys: pytest.CaptureFixture[str], family: Path) -> str:
    assert main(tiny(family, "--prompt", "a")) == 0
    return capsys.readouterr().err


def test_generate_says_once_that_steps_are_slow_and_why(family: Path) -> None:
    command = [sys.executable, "-m", "cli.main", *tiny(family, "--prompt", "a", "--max-tokens", "2")]
    command += ["--drafter", str(family / "drafter")]
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr.count("no C++ compiler was found (tried CXX=no-such-compiler)") == 1
    assert done.stderr.count("steps run in plain torch, several times slower") == 1


def test_serve_says_before_it_starts_that_steps_will_be_slow(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def running(config: AppConfig, **options: Any) -> Iterator[str]:
        yield "http://here"

    monkeypatch.setattr("deployments.cluster.running", running)
    monkeypatch.setattr("deployments.process.why_not_native", lambda: "no [C++] compiler")
    config = load_config(config_beside(family, tmp_path, CONFIG))
    told = {}
    for name, changed, address in [
        ("auto", config, None),
        ("elsewhere", config, "head:6379"),
        ("eager", in_torch(config), None),
    ]:
        console = Console(file=StringIO())
        with started(changed, console, address):
            told[name] = console.file.getvalue().count(  # type: ignore[attr-defined]
                "warning: no [C++] compiler; steps run in plain torch, several times slower"
            )
    assert told == {"auto": 1, "elsewhere": 0, "eager": 0}


def in_torch(config: AppConfig) -> AppConfig:
    targets = tuple(target.model_copy(update={"execution": "eager"}) for target in config.targets)
    assert config.pool is not None
    pool = config.pool.model_copy(update={"execution": "eager"})
    return config.model_copy(update={"targets": targets, "pool": pool})


def test_help_is_quick_and_names_every_command() -> None:
    script = "import sys, cli.main as c\ntry: c.main(['--help'])\nfinally: print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(f"\n    {name}" in output for name in COMMANDS)
    assert output.endswith("False\n")


def write(family: Path, text: str, tmp_path: Path) -> str:
    return str(config_beside(family, tmp_path, text))


def test_check_tells_what_would_be_served(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> None:
    assert main(["check", write(family, CONFIG, tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "target large: llama, 4 layers, fp32, depth 4, length 4",
        "pool: 1 replicas, fp32, exits 2, 4",
        "ok",
    ]


@pytest.mark.parametrize(
    ("speculation", "words"),
    [
        ("{}", "goodput, any exit, length 0 to 12"),
        ("{policy: ema}", "ema, any exit, length 0 to 12"),
        ("{exits: [2, 4], length: 6}", "goodput, exits 2, 4, length 0 to 6"),
        ("{policy: fixed, depth: 2, mirror: {exit_layer: 4}}", "depth 2, length 4, drafted ahead\n"),
        (
            "{policy: table, depth: cascade, exits: [2, 4], table: {1: 6, 8: 0}}",
            "depth cascade, length 6 from batch 1, 0 ",
        ),
        ("off", "no speculation"),
    ],
)
def test_check_tells_how_each_target_speculates(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, speculation: str, words: str
) -> None:
    assert main(["check", write(family, CONFIG.replace(FIXED, speculation), tmp_path)]) == 0
    assert f"fp32, {words}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("depth: 4", "depth: 3", "speculation of target large asks for depth 3; the drafter has the exits 2, 4"),
        (FIXED, "{exits: [2, 3]}", "speculation of target large asks for depth 3; the drafter has the exits 2, 4"),
        (FIXED, "{mirror: {exit_layer: 5}}", "mirror.exit_layer 5 of target large lies behind the 4 layers"),
        ("page_size: 16, kv_mb: 8, spec", "max_model_len: 9999, spec", "max_model_len 9999 of target large exceeds"),
        ("path: large", "path: ./nowhere", "nowhere is not a directory"),
        ("path: drafter", "path: other", "have different vocabularies; train a drafter for it"),
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
    other = tmp_path / "other"
    make_model(other, 2, seed=3)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    cut = shutil.copytree(family / "large", tmp_path / "cut") / "model.safetensors"
    os.truncate(cut, cut.stat().st_size - 8)
    mute = shutil.copytree(family / "large", tmp_path / "mute") / "chat_template.jinja"
    mute.write_text("{% for message in messages %}")
    deeper = shutil.copytree(family / "drafter", tmp_path / "deeper") / "config.json"
    deeper.write_text(deeper.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    text = CONFIG.replace(old, new).replace("depth: 4", "depth: 2") if "other" in new else CONFIG.replace(old, new)
    capsys.readouterr()
    assert message in refused(capsys, "check", write(family, text, tmp_path))


def test_check_warns_of_memory_for_less_than_a_whole_context(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    long = shutil.copytree(family / "large", tmp_path / "long") / "config.json"
    long.write_text(long.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 20000'))
    text = CONFIG.replace("path: large", "path: ./long")
    assert main(["check", write(family, text, tmp_path)]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: kv_mb 8 of target large holds 4096 positions, fewer than the 20000 of its max_")
    (tmp_path / "app.yaml").write_text(text.replace("path: ./long", "path: ./long, max_model_len: 4096"))
    assert main(["check", str(tmp_path / "app.yaml")]) == 0
    assert "warning" not in capsys.readouterr().out


def changed(family: Path, folder: Path, name: str, **changes: object) -> Path:
    """A copy of large with other entries in one of its files; None takes one out."""
    copy = shutil.copytree(family / "large", folder / "copy")
    values = json.loads((copy / name).read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    (copy / name).write_text(json.dumps(kept))
    return copy


def checked(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> str:
    """The first line that check says of the copy."""
    assert main(["check", write(family, CONFIG.replace("path: large", "path: ./copy"), tmp_path)]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert isinstance(first, str)
    return first


def test_check_warns_where_the_files_name_different_ends(
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
    assert main(["check", str(tmp_path / "app.yaml")]) == 0
    assert "writes <|im_start|>, so every chat request is refused" in capsys.readouterr().out.splitlines()[1]


def test_check_renders_the_chat_template_once(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> None:
    copy = changed(family, tmp_path, "tokenizer_config.json")
    path = write(family, CONFIG.replace("path: large", "path: ./copy"), tmp_path)
    for template, complaint in [
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{% for message in messages %}{{ message.content }}", "Unexpected end of template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ]:
        (copy / "chat_template.jinja").write_text(template)
        capsys.readouterr()
        error = refused(capsys, "check", path)
        assert error.startswith("draftpool: the chat template of target large does not work: ")
        assert complaint in error


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GemmaTokenizer"])
def test_check_has_nothing_against_another_tokenizer_class(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, name: str
) -> None:
    changed(family, tmp_path, "tokenizer_config.json", tokenizer_class=name)
    assert "warning" not in checked(capsys, family, tmp_path)


@pytest.fixture
def run_marker() -> Iterator[dict[str, str]]:
    """An environment by which every process of a run is known; none may be left, nor any file of theirs. It names
    proxies that lead nowhere: nothing of ours goes through one.
    """
    folder = tempfile.mkdtemp(prefix="t-")
    mark = uuid4().hex
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    yield os.environ | proxies | {MARK: mark, "TMPDIR": folder, "no_proxy": "localhost,127.0.0.1"}
    left = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and is_marked(pid, mark)]
    assert left == []
    assert os.listdir(folder) == []
    shutil.rmtree(folder)


def is_marked(process: Path, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


@pytest.mark.ray
def test_demo_streams_from_every_target_and_leaves_nothing_running(
    family: Path, tmp_path: Path, run_marker: dict[str, str]
) -> None:
    patient = CONFIG.replace("length: 4}", "length: 4, deadline_ms: 20000}")
    config = write(family, patient + "ingress: {num_cpus: 0}", tmp_path)
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "demo",
        "--config",
        config,
        "--max-tokens",
        "40",
        "--pairs",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=run_marker, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│ large")]
    assert [(name.strip(), text.strip()) for name, *_, text in rows] == [("large", "the same")]
    without, with_pool, gain, accepted = (float(cell.strip(" x")) for cell in rows[0][1:5])
    assert min(without, with_pool, gain) > 0
    assert accepted > 3.5
    assert "replicas: large 1 x 1 thread, drafter 1 x 1 thread; steps by " in done.stdout
    assert "raylet" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_serve_stops_clean_on_sigterm(family: Path, tmp_path: Path, run_marker: dict[str, str]) -> None:
    from link.listening import free_port

    port = free_port()
    command = [sys.executable, "-m", "cli.main", "serve", write(family, CONFIG, tmp_path), "--port", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=run_marker | {"PYTHONUNBUFFERED": "1"}
    )
    assert server.stdout is not None
    greeting = [server.stdout.readline() for _ in range(4)]
    assert greeting[0] == f"large at http://127.0.0.1:{port}/v1\n"
    assert any(line.startswith(f"curl http://127.0.0.1:{port}/v1/completions") for line in greeting)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
        assert response.status == 200
    server.send_signal(signal.SIGTERM)
    output, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in output + errors
