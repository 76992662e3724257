"""Curves against the exact functions that they stand for, and what may not be read as one."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product

import pytest

from protocol.errors import ConfigError
from router.cost_files import cache_name, dumps, dumps_costs, loads, loads_costs
from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    ModelKey,
    TargetCosts,
    row_points,
)

ROWS, PER_ROW, CONTEXTS = (1, 2, 4, 8, 16), (1, 2, 3, 5, 9), (64, 256, 1024)
KEY = ModelKey("2 x some CPU", "0123456789abcdef", "bf16", 2, "draftpool 0.1.0, torch 2.13.0")


def curve(axes, points, cost) -> Curve:
    return Curve(axes, points, tuple(cost(*cell) for cell in product(*points)))


def verify_cost(rows: float, tokens: float, context: float) -> float:
    """A plane over rows, tokens and context, and attention: every query looks at its row's context."""
    return 1.5 + 0.07 * rows + 0.02 * tokens + 0.001 * context + 3e-4 * rows * context + 1e-4 * tokens * context


def draft_cost(rows: float, depth: float, num_new: float, length: float) -> float:
    return 0.1 + depth * (0.02 + 0.003 * rows) * length + 0.01 * rows * (num_new - 1)


@pytest.fixture
def curves() -> CostCurves:
    verify = curve(VERIFY_AXES, (ROWS, PER_ROW, CONTEXTS), lambda rows, each, at: verify_cost(rows, rows * each, at))
    prefill = curve(PREFILL_AXES, ((16, 512),), lambda tokens: 1 + 0.1 * tokens)
    overhead = curve(ROW_AXES, ((1, 16),), lambda rows: 0.1 + 0.01 * rows)
    draft = curve(DRAFT_AXES, (ROWS, (2, 4, 6), (1, 4, 16), (1, 5)), draft_cost)
    link = curve(ROW_AXES, ((1, 64),), lambda rows: 0.2 + 0.001 * rows)
    target = TargetCosts(KEY, verify, prefill, overhead, error=0.03)
    return CostCurves("large", target, DrafterCosts(replace(KEY, fingerprint="f" * 16), draft, link, error=0.05))


def test_planes_and_attention_are_met_exactly_between_the_points(curves: CostCurves) -> None:
    rng = random.Random(1)
    for _ in range(300):
        rows, each, context = rng.uniform(1, 16), rng.uniform(1, 9), rng.uniform(64, 1024)
        assert curves.verify_ms(rows, rows * each, context) == pytest.approx(verify_cost(rows, rows * each, context))
        depth, new, length = rng.uniform(2, 6), rng.uniform(1, 16), rng.uniform(1, 5)
        assert curves.draft_ms(rows, depth, length, new) == pytest.approx(draft_cost(rows, depth, new, length))
    assert curves.prefill_ms(100) == pytest.approx(11)
    assert curves.overhead_ms(8) == pytest.approx(0.18)
    assert curves.link_ms(32) == pytest.approx(0.232)


def test_beyond_the_grid_the_last_slope_goes_on_and_below_it_the_edge_counts(curves: CostCurves) -> None:
    assert curves.verify_ms(32, 32 * 17, 2000) == pytest.approx(verify_cost(32, 32 * 17, 2000))
    assert curves.draft_ms(16, 6, 12) == pytest.approx(draft_cost(16, 6, 1, 12))
    assert curves.verify_ms(1, 1, 3) == curves.verify_ms(1, 1, 64)
    falling = curve(PREFILL_AXES, ((1, 2, 4),), lambda tokens: 5 - tokens)
    assert [falling.at(x) for x in (4, 5, 1000)] == [1, 1, 1]


def test_noise_at_the_points_makes_no_new_hills_between_them() -> None:
    rng = random.Random(2)
    for _ in range(100):
        noisy = curve(("a", "b"), ((1, 2, 5), (1, 3, 4)), lambda a, b: rng.uniform(1, 2))
        table = dict(zip(product(*noisy.points), noisy.ms, strict=True))
        a, b = rng.uniform(2, 5), rng.uniform(1, 3)
        corners = [table[corner] for corner in product((2, 5), (1, 3))]
        assert min(corners) - 1e-12 <= noisy.at(a, b) <= max(corners) + 1e-12


def test_what_rises_from_point_to_point_rises_everywhere() -> None:
    rng = random.Random(3)
    for _ in range(50):
        steps = [rng.uniform(0, 1) for _ in range(5)]
        rising = curve(("x",), ((1, 2, 4, 8, 16),), lambda x, s=steps: sum(s[: x.bit_length()]))
        values = [rising.at(0.25 * x) for x in range(1, 160)]
        assert values == sorted(values)


def test_a_single_point_on_an_axis_is_a_constant() -> None:
    assert curve(("a", "b"), ((4,), (1, 2)), lambda a, b: 10 * b).at(99, 1.5) == 15


def test_catching_up_costs_what_the_extra_tokens_add_and_nothing_is_drafted_for_nothing(curves: CostCurves) -> None:
    assert curves.catch_up_ms(8, 4, 10) == pytest.approx(0.01 * 8 * 9)
    assert curves.catch_up_ms(8, 4, 1) == 0
    assert curves.draft_ms(8, 4, 0) == 0
    alone = replace(curves, drafter=None)
    assert alone.draft_ms(8, 4, 0) == 0
    with pytest.raises(ConfigError, match="target large was profiled without a drafter"):
        alone.draft_ms(8, 4, 1)


def test_rows_are_measured_at_powers_of_two_and_at_the_last() -> None:
    assert [row_points(last) for last in (1, 2, 6, 16)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8, 16)]
    with pytest.raises(ConfigError, match="raise kv_mb"):
        row_points(0)


@pytest.mark.parametrize(
    ("points", "ms", "message"),
    [
        (((1, 1),), (1.0, 2.0), "must ascend"),
        (((2, 1),), (1.0, 2.0), "must ascend"),
        (((1, 2),), (1.0,), "takes 2 times, 1 were given"),
        (((),), (), "needs points"),
        (((1, 2),), (1.0, -0.1), "not negative"),
        (((1, 2),), (1.0, float("nan")), "finite"),
    ],
)
def test_a_table_that_is_no_curve_is_refused(points, ms, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Curve(("x",), points, ms)


def test_curves_come_back_from_their_file_as_they_were(curves: CostCurves) -> None:
    without = replace(curves, name="small", drafter=None)
    assert loads(dumps([curves, without]), "f.json") == (curves, without)


def damaged(curves: CostCurves, *path: str | int, value: object) -> str:
    values = json.loads(dumps([curves]))
    inner = values
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 1, "schema_version 1 is not 2"),
        (("comment",), "", "'comment' is no key"),
        (("curves", 0, "speed"), 1, "'speed' is no key"),
        (("curves", 0, "target", "key", "cores"), 4, "'cores' is no key"),
        (("curves", 0, "target", "key"), {}, "'device' is missing"),
        (("curves", 0, "target", "verify", "unit"), "s", "'unit' is no key"),
        (("curves", 0, "target", "verify", "axes"), ["num_tokens"], "where one over"),
        (("curves", 0, "drafter", "link", "ms"), [1.0], "takes 2 times"),
        (("curves", 0, "drafter", "error"), None, "float"),
        (("curves", 0), 3, "belongs where 3 stands"),
    ],
    ids=str,
)
def test_a_file_that_is_not_understood_is_refused_and_named(curves, path, value, message) -> None:
    with pytest.raises(ConfigError, match=rf"^f\.json: .*{message}.*run draftpool profile again"):
        loads(damaged(curves, *path, value=value), "f.json")


def test_a_file_that_is_no_json_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not JSON"):
        loads("{", "f.json")


def test_a_target_and_a_drafter_come_back_from_files_of_their_own(curves: CostCurves) -> None:
    assert loads_costs(TargetCosts, dumps_costs(curves.target), "f.json") == curves.target
    assert curves.drafter is not None
    assert loads_costs(DrafterCosts, dumps_costs(curves.drafter), "f.json") == curves.drafter


def test_one_kind_of_file_is_not_taken_for_another(curves: CostCurves) -> None:
    assert curves.drafter is not None
    for text in (dumps([curves]), dumps_costs(curves.drafter)):
        with pytest.raises(ConfigError, match=r"^f\.json: .* is no key of this schema; run draftpool profile again"):
            loads_costs(TargetCosts, text, "f.json")
    with pytest.raises(ConfigError, match=r"^f\.json: 'curves' is missing"):
        loads(dumps_costs(curves.target), "f.json")
    old = dumps_costs(curves.target).replace('"schema_version": 2', '"schema_version": 1')
    with pytest.raises(ConfigError, match="schema_version 1 is not 2"):
        loads_costs(TargetCosts, old, "f.json")


@pytest.mark.parametrize("name", ["device", "fingerprint", "dtype", "threads", "versions"])
def test_every_part_of_the_key_has_its_own_file_and_so_has_every_kind(name: str) -> None:
    other = replace(KEY, **{name: 3 if name == "threads" else "other"})
    assert len({cache_name(kind, key) for kind in (TargetCosts, DrafterCosts) for key in (KEY, other)}) == 4
