"""The number of cores follows affinity and every cgroup around this process."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from model.cores import cgroup_cores, limit_cores, usable_cores


def cores_within(tmp_path: Path, cgroup: str, files: dict[str, str]) -> float:
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "process").write_text(cgroup + "\n")
    return cgroup_cores(tmp_path / "mount", tmp_path / "process")


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/pod/own", {"pod/cpu.max": "200000 100000", "pod/own/cpu.max": "max 100000"}, 2.0),
        ("0::/pod/own", {"pod/cpu.max": "200000 100000", "pod/own/cpu.max": "50000 100000"}, 0.5),
        ("0::/outside/of/the/mount", {"cpu.max": "300000 100000"}, 3.0),
        ("5:cpu,cpuacct:/a\n4:memory:/b", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1"}, math.inf),
        (
            "5:cpu,cpuacct:/a\n4:memory:/b",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            4.0,
        ),
        ("4:memory:/b", {"memory/b/cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_the_least_share_of_all_cgroups_around_it_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: float
) -> None:
    assert cores_within(tmp_path, cgroup, files) == cores


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_cores(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(
    ("num_cores", "share", "threads"), [(8, math.inf, 8), (8, 1.5, 2), (8, 0.25, 1), (2, 64.0, 2), (1, math.inf, 1)]
)
def test_a_share_of_a_core_is_worth_a_thread(num_cores: int, share: float, threads: int) -> None:
    assert limit_cores(num_cores, share) == threads


def test_an_affinity_of_one_core_leaves_one() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
