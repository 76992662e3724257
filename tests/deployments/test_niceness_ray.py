"""How our own cluster's processes are scheduled beside others, read from the operating system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ray import serve

from deployments.session import attached_ray
from tests.deployments.head import Head
from tests.deployments.ingress_twins import ScriptedTarget

pytestmark = pytest.mark.ray
APP = "niceness"


def test_replicas_and_proxies_are_no_nicer_than_who_started_the_cluster(ray_head: Head) -> None:
    with attached_ray(ray_head.address):
        target = serve.deployment(ScriptedTarget).options(name="target-tiny", ray_actor_options={"num_cpus": 0})
        told = serve.run(target.bind(), name=APP, route_prefix=None).describe.remote().result()
        try:
            raylet = parent(int(told["pid"]))
            found = {name(pid): niceness(pid) for pid in children(raylet) if name(pid).startswith("ray::")}
        finally:
            serve.delete(APP)
    assert found.keys() >= {"ray::ServeRepli", "ray::ServeContr", "ray::ProxyActor"}
    assert set(found.values()) == {niceness(raylet)} == {niceness(os.getpid())}


def parent(pid: int) -> int:
    """The part of its line behind the name, which may have any character in it, begins with state and parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    lists = [of_a_thread.read_text() for of_a_thread in Path(f"/proc/{pid}/task").glob("*/children")]
    return list(map(int, " ".join(lists).split()))


def name(pid: int) -> str:
    """Its first 15 characters."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)
