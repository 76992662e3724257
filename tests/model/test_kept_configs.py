"""What config.json files come to is kept: the same the second time, and read anew whenever anything has changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import model.hf_config
from model.config import read_config
from model.hf_config import FAMILIES
from model.kept_configs import find, place_of
from protocol.errors import UnsupportedModel
from tests.model.families import change_config, make_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTPOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "configs"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose config.json transformers has read."""
    parse, read = model.hf_config.parse, list[Path]()
    monkeypatch.setattr(model.hf_config, "parse", lambda folder, raw: (read.append(folder), parse(folder, raw))[1])
    return read


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_time_it_is_the_same(tmp_path: Path, cache: Path, parsed: list[Path], family: str) -> None:
    folder = make_checkpoint(family, tmp_path / "model", seed=0)
    first, second = read_config(folder), read_config(folder)
    assert second == first
    assert len({id(rope) for rope in second.ropes}) == len({id(rope) for rope in first.ropes})
    assert parsed == [folder]


def test_what_changes_is_read_anew_and_end_tokens_are_never_kept(
    tmp_path: Path, cache: Path, parsed: list[Path]
) -> None:
    folder = make_checkpoint("llama", tmp_path / "model", seed=0)
    read_config(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert 9 in read_config(folder).eos_token_ids
    assert len(parsed) == 1
    change_config(folder, {"rms_norm_eps": 0.25})
    assert read_config(folder).norm_eps == 0.25
    change_config(folder, {"hidden_act": "tanh"})
    for _ in range(2):
        with pytest.raises(UnsupportedModel):
            read_config(folder)
    assert len(list(cache.iterdir())) == 2


def cut(place: Path) -> None:
    place.write_text(place.read_text()[:-9])


def other(place: Path) -> None:
    place.write_text('{"family": "llama"}')


def closed(place: Path) -> None:
    place.unlink()
    place.parent.rmdir()
    place.parent.write_text("not a folder")


@pytest.mark.parametrize("spoil", [cut, other, closed])
def test_what_cannot_be_read_or_kept_is_read_anew(tmp_path: Path, cache: Path, spoil: Callable[[Path], None]) -> None:
    folder = make_checkpoint("llama", tmp_path / "model", seed=0)
    first = read_config(folder)
    (place,) = cache.iterdir()
    spoil(place)
    assert find(place) is None
    assert read_config(folder) == first


def test_the_sources_of_the_reading_are_part_of_the_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, source = place_of({}), tmp_path / "source.py"
    source.write_text("changed")
    monkeypatch.setattr("model.kept_configs.SOURCES", (source,))
    assert place_of({}) != before


def test_a_process_that_finds_it_imports_no_transformers(tmp_path: Path, cache: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "model", seed=0)
    asked = f"from pathlib import Path; from model.config import read_config; read_config(Path({str(folder)!r}))"
    code = f"import sys; {asked}; print('transformers' in sys.modules, 'torch._dynamo' in sys.modules)"
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert [done.stdout.split() for done in told] == [["True", "True"], ["False", "False"]]
