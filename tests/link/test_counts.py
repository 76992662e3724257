from __future__ import annotations

import json

from link.connection import Traffic
from link.counts import replica_name, told
from protocol.stats import EngineStats, Runs, TranslationCounts

EAGER = Runs("torch, cpu", "no C++ compiler was found")
NOW = {"num_running": 1, "num_waiting": 0, "num_free_pages": 6, "num_pages": 8, "num_steps": 20}


def test_every_count_is_told_and_what_one_would_work_out_from_them() -> None:
    stats = EngineStats(
        **NOW,
        num_rounds=20,
        num_proposed=60,
        num_accepted=40,
        num_committed=50,
        num_drafts=17,
        num_hits=12,
        num_misses=4,
        draft_ms=30.0,
        num_hit_rounds=12,
        hit_draft_ms=6.0,
        num_fresh_rounds=3,
        fresh_draft_ms=15.0,
    )
    counts = json.loads(json.dumps(told(stats, EAGER, Traffic(300, 700))))
    assert counts["num_committed"] == 50
    assert (counts["num_drafts"], counts["num_hits"], counts["num_misses"]) == (17, 12, 4)
    assert counts["steps_run"] == {"by": "torch, cpu", "slower_because": "no C++ compiler was found"}
    assert counts["ratios"] == {
        "acceptance_rate": 0.6667,
        "hit_rate": 12 / 16,
        "draft_ms_per_round": 30 / 20,
        "verify_ms_per_round": 0.0,
        "hidden_on_hits": 1 - (6 / 12) / (15 / 3),
    }
    assert counts["link"] == {"sent_bytes": 300, "received_bytes": 700, "bytes_per_round": 1000 / 20}


def test_before_the_first_round_there_are_no_ratios() -> None:
    counts = told(EngineStats(**NOW), EAGER)
    assert set(counts["ratios"].values()) == {None}
    assert counts["link"] is counts["translation"] is None
    assert told(EngineStats(**NOW), EAGER, None, TranslationCounts())["translation"]["shared"] is None


def test_counts_are_what_json_keeps() -> None:
    counts = told(EngineStats(**NOW, num_accepted_by_position=(3, 1)), EAGER, Traffic(1, 2), TranslationCounts(3, 2))
    assert json.loads(json.dumps(counts)) == counts


def test_the_name_of_a_replica_is_its_own_and_does_not_reveal_the_incarnation() -> None:
    names = {replica_name(f"large-{index}") for index in range(100)}
    assert len(names) == 100
    assert replica_name("large-7") == replica_name("large-7")
    assert not any("large" in name for name in names)


def test_a_translation_tells_how_much_of_the_text_both_vocabularies_have() -> None:
    counts = told(EngineStats(**NOW), EAGER, None, TranslationCounts(num_tokens=200, num_shared=150))
    assert counts["translation"] == {"num_tokens": 200, "num_shared": 150, "shared": 0.75}
