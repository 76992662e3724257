"""Keys as they are held, compared, and read again when their file changes."""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path

import httpx
import pytest

from api.door import Door
from api.keys import LEAST, MOST, AnyOf, FixedKeys, KeyFile
from protocol.errors import ConfigError
from tests.api.api_twins import ScriptedBackend, says
from tests.bench.http_server import http_server

KEYS = [f"key-number-{number}-of-eight" for number in range(8)]


@pytest.mark.parametrize("given", [KEYS[0], KEYS[3], KEYS[7], "no-key-of-this-server"])
def test_a_key_is_compared_with_every_one_in_constant_time(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    lengths = list[tuple[int, int]]()

    def compare(one: bytes, other: bytes) -> bool:
        lengths.append((len(one), len(other)))
        return one == other

    keys = AnyOf([FixedKeys(KEYS[:4], "one"), FixedKeys(KEYS[4:], "other")])
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.hold(given) == (given in KEYS)
    assert lengths == [(32, 32)] * len(KEYS)


def test_keys_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n".join(KEYS))
    for keys in (FixedKeys(KEYS, "here"), KeyFile(path)):
        assert not any(key in f"{keys!r} {vars(keys)!r}" for key in KEYS)


BAD = ["x" * (LEAST - 1), "x" * (MOST + 1), "two words of a key here", "schlüssel-mit-umlaut", "a-key-with-\x00-in-it"]


@pytest.mark.parametrize("bad", BAD)
def test_what_can_be_guessed_or_cannot_be_sent_is_no_key_and_is_not_repeated(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{KEYS[0]}\n{bad}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"key 2 of {path} is not a key .*openssl rand") as caught:
        KeyFile(path)
    assert bad not in str(caught.value)
    with pytest.raises(ConfigError, match="key 1 of DRAFTPOOL_API_KEYS"):
        FixedKeys([bad], "DRAFTPOOL_API_KEYS")


def test_keys_at_the_limits_are_keys() -> None:
    for key in ("x" * LEAST, "~" * MOST):
        assert FixedKeys([key], "here").hold(key)


def test_a_file_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the keys in .*nothing: No such file.*one key a line"):
        KeyFile(tmp_path / "nothing")


def test_a_running_server_follows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS[0])

    def admitted(url: str) -> list[str]:
        return [key for key in KEYS if asked(url, key) == 200]

    with http_server(ScriptedBackend(says("x")), door=Door(KeyFile(path))) as url:
        assert admitted(url) == [KEYS[0]]
        path.write_text(KEYS[1])  # of the same length, within the same tick
        assert admitted(url) == [KEYS[1]]
        path.write_text("\n".join(KEYS[1:3]))
        assert admitted(url) == KEYS[1:3]
        (tmp_path / "new").write_text(KEYS[5])
        os.replace(tmp_path / "new", path)
        assert admitted(url) == [KEYS[5]]
        path.write_text("# nobody\n")
        assert admitted(url) == []
        assert httpx.get(f"{url}/health").status_code == 200


def asked(url: str, key: str) -> int:
    return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code


def test_a_kubernetes_secret_that_is_swapped_counts_at_once(tmp_path: Path) -> None:
    """The kubelet swaps a link to a folder, and the file is a link through it."""
    for number in range(2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "api-keys").write_text(KEYS[number])
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "api-keys").symlink_to("..data/api-keys")
    keys = KeyFile(tmp_path / "api-keys")
    assert [keys.hold(key) for key in KEYS[:2]] == [True, False]
    (tmp_path / "..tmp").symlink_to("..1")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    assert [keys.hold(key) for key in KEYS[:2]] == [False, True]


def test_a_file_that_breaks_leaves_the_keys_and_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS[0])
    keys = KeyFile(path)
    for breaks in (lambda: path.write_text("short-secret"), path.unlink, path.mkdir):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "api.keys"):
            breaks()
            assert [keys.hold(KEYS[0]) for _ in range(3)] == [True] * 3
        (line,) = caplog.messages
        assert line.endswith("the keys stay as they were")
        assert "short-secret" not in line
    path.rmdir()
    path.write_text(KEYS[1])
    assert [keys.hold(key) for key in KEYS[:2]] == [False, True]
