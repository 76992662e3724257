"""A scripted backend that always says TEXT, and a client of the API over it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.api_client import TEXT, Client
from tests.api.api_twins import ScriptedBackend, says


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(says(TEXT))


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[Client]:
    async with Client(backend) as client:
        yield client
    assert backend.num_open == 0
