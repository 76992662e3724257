from __future__ import annotations

import json
from dataclasses import replace

from deployments.counts import told
from protocol.stats import EngineStats, MirrorStats

STATS = EngineStats(1, 0, 6, 8, 20, 0, 60, 40, 50, 1)
MIRROR = MirrorStats(20, 6, 3, 2, 1, 4, 90, 200, 5, 3, 30.0)


def test_every_count_is_told_and_what_one_would_work_out_from_them() -> None:
    counts = json.loads(json.dumps(told(replace(STATS, mirror=MIRROR))))
    assert counts["num_committed"] == 50
    assert counts["mirror"]["hits_runner_up"] == 3
    assert counts["mirror"]["num_fenced"] == 5
    assert counts["mirror"]["hit_rate"] == 12 / 16
    assert counts["mirror"]["tokens_per_committed"] == 200 / 50
    assert counts["mirror"]["wait_ms_per_round"] == 30 / 20


def test_before_the_first_round_there_are_no_ratios_and_without_mirror_nothing_of_it() -> None:
    fresh = told(replace(STATS, num_committed=0, mirror=MirrorStats()))["mirror"]
    assert {fresh[name] for name in ("hit_rate", "tokens_per_committed", "wait_ms_per_round")} == {None}
    assert told(STATS)["mirror"] is None
