"""`draftpool trace` at a server whose operators have a key."""

from __future__ import annotations

import pytest

from api.door import Door
from api.keys import KEYS, FixedKeys
from cli.server import ask
from deployments.direct import OWN_KEY
from protocol.errors import ConfigError
from tests.api.api_twins import ScriptedBackend, says
from tests.bench.http_server import http_server

KEY = "key-of-the-operator"


def test_it_shows_the_key_of_its_environment_and_says_which_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    with http_server(ScriptedBackend(says("x")), door=Door(admin_keys=FixedKeys([KEY], "here"))) as url:
        with pytest.raises(ConfigError, match=f"only with an admin key; set {OWN_KEY} to one"):
            ask(url, "/debug/trace?rounds=4")
        monkeypatch.setenv(OWN_KEY, KEY)
        assert len(ask(url, "/debug/trace?rounds=4")["traceEvents"]) > 4
        with pytest.raises(ConfigError, match=r"answers HTTP Error 404"):
            ask(f"{url}/nothing", "/debug/trace?rounds=4")
