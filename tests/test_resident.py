"""Memory: a leak is seen in whichever process it is, and noise is not one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.memory import peak_mb
from tests.resident import Growth, MemoryRecorder, growth, label, numbered

REPLICA = "ray::ServeReplica:draftpool:"
LEAKING_CHILD = (
    "import sys; kept = [bytes(range(256)) * 8192 for _ in iter(sys.stdin.readline, '') if not print(flush=True)]"
)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ([f"{REPLICA}target-large", "", ""], "target-large"),
        ([f"{REPLICA}target-qwen2.5.handle_request_with_rejection", ""], "target-qwen2.5"),
        ([f"{REPLICA}draft-pool"], "draft-pool"),
        ([f"{REPLICA}ingress.check_health"], "ingress"),
        (["ray::ProxyActor", ""], "ProxyActor"),
        (["ray::ServeController.listen_for_change"], "ServeController"),
        (["/x/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=/tmp/a.py.sock"], "raylet"),
        (["/x/bin/python", "-u", "/x/ray/autoscaler/_private/monitor.py", "--flag"], "monitor.py"),
        ([], "unknown"),
    ],
)
def test_processes_have_the_names_of_their_parts(command: list[str], name: str) -> None:
    assert label(command) == name


def test_equal_names_are_numbered() -> None:
    assert numbered({7: "draft-pool", 8: "raylet", 9: "draft-pool"}) == {
        7: "draft-pool #1",
        8: "raylet",
        9: "draft-pool #2",
    }


def test_growth_is_the_slope_behind_the_base() -> None:
    done = list(range(0, 2001, 100))
    row = growth("target", 900.0, done, [500 + (100 if n >= 200 else n / 2) + n / 100 for n in done], base_after=200)
    assert (row.base, row.end, row.peak_under_load, row.peak) == (602, 620, 620, 900)
    assert (row.growth, row.kib_per_request) == (18, 10.24)
    assert row.grows


@pytest.mark.parametrize(
    ("base", "added", "grows"), [(100, 3.9, False), (100, 4.1, True), (900, 8.9, False), (900, 9.1, True)]
)
def test_growth_must_exceed_the_noise_of_the_allocator(base: float, added: float, grows: bool) -> None:
    assert Growth("target", base, base, base, base, added, 0.0).grows is grows


def test_a_flat_line_with_noise_does_not_grow() -> None:
    done = list(range(0, 2001, 50))
    assert not growth("target", 0.0, done, [500 + (n // 50 * 7 % 5) for n in done], base_after=200).grows


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="send more requests"):
        growth("target", 0.0, [100, 200, 300], [1.0, 1.0, 1.0], base_after=200)


def test_the_recorder_sees_which_process_leaks() -> None:
    recorder = MemoryRecorder()
    with subprocess.Popen(
        [sys.executable, "-c", LEAKING_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(12):
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
            recorder.sample(number)
        rows = {row.process: row for row in recorder.result(base_after=2)}
        assert peak_mb(child.pid) == pytest.approx(recorder.peaks[child.pid], abs=4)
    leak = max(rows.values(), key=lambda row: row.growth)  # other children of this process may be there
    assert leak.grows
    assert leak.kib_per_request == pytest.approx(2048, rel=0.1)
    assert not rows["this process"].grows


def test_a_process_that_ends_is_left_out() -> None:
    recorder = MemoryRecorder()
    recorder.samples = [{1: 10.0, 2: 5.0}, {1: 10.0}, {1: 10.0}]
    recorder.num_done, recorder.labels, recorder.peaks = [0, 1, 2], {1: "stays", 2: "ends"}, {1: 10.0, 2: 5.0}
    assert [row.process for row in recorder.result(0)] == ["stays"]
