from __future__ import annotations

import json
from dataclasses import replace

from link.connection import Traffic
from link.counts import told
from protocol.stats import EngineStats, MirrorStats, Runs

STATS = EngineStats(1, 0, 6, 8, 20, 0, 60, 40, 50, 1)
EAGER = Runs("torch, cpu", "no C++ compiler was found")
MIRROR = MirrorStats(20, 6, 3, 2, 1, 4, 90, 200, 5, 3, 30.0, 0, 12, 6.0, 3, 15.0)


def test_every_count_is_told_and_what_one_would_work_out_from_them() -> None:
    counts = json.loads(json.dumps(told(replace(STATS, mirror=MIRROR), EAGER, Traffic(300, 700))))
    assert counts["num_committed"] == 50
    assert counts["steps_run"] == {"by": "torch, cpu", "slower_because": "no C++ compiler was found"}
    assert counts["mirror"]["hits_runner_up"] == 3
    assert counts["mirror"]["num_fenced"] == 5
    assert counts["mirror"]["hit_rate"] == 12 / 16
    assert counts["mirror"]["tokens_per_committed"] == 200 / 50
    assert counts["mirror"]["wait_ms_per_round"] == 30 / 20
    assert counts["mirror"]["hidden_on_hits"] == 1 - (6 / 12) / (15 / 3)
    assert counts["link"] == {"sent_bytes": 300, "received_bytes": 700, "bytes_per_round": 1000 / 20}


def test_before_the_first_round_there_are_no_ratios_and_without_mirror_nothing_of_it() -> None:
    fresh = told(replace(STATS, num_committed=0, mirror=MirrorStats()), EAGER)["mirror"]
    ratios = ("hit_rate", "tokens_per_committed", "wait_ms_per_round", "hidden_on_hits")
    assert {fresh[name] for name in ratios} == {None}
    assert told(STATS, EAGER)["mirror"] is None
    assert told(STATS, EAGER)["link"] is None
