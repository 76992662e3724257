"""One torch thread per test process: OpenMP threads that spin stall by 10x and more when they share two cores.

A Ray that tests start asks for a token, as Ray has it by default; those that attach to it must be told so.

Two processes share the files; all that needs Ray runs in one of them, on one cluster.
"""

import os

import pytest

pytest_plugins = ["tests.fixtures"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "token")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups at its own turn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
