"""Filters are those of transformers, picks are exact samples, and confidences say what the noise decides."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import model.native.decoder
from model.noise import gumbel
from model.sampling import filter_logits, pick, pick_with_confidence, surely_kept
from protocol.request import SamplingParams
from tests.model.families import needs_compiler
from tests.model.kernels import load

SEEDS = range(25)


def random_params(rng: np.random.Generator) -> SamplingParams:
    return SamplingParams(
        temperature=float(rng.choice([0.5, 0.8, 1.0, 1.7])),
        top_k=int(rng.choice([0, 1, 5, 20, 1000])),
        top_p=float(rng.choice([1.0, 0.95, 0.5, 0.01])),
        min_p=float(rng.choice([0.0, 0.05, 0.3, 1.0])),
        seed=int(rng.integers(2**63)),
    )


def transformers_filter(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(None, logits)


@pytest.mark.parametrize("seed", SEEDS)
def test_filters_keep_what_transformers_keeps_in_a_batch_of_mixed_settings(seed):
    rng = np.random.default_rng(seed)
    rows = [random_params(rng) for _ in range(8)]
    logits = torch.from_numpy(rng.normal(size=(8, 101)).astype(np.float32)) * 3
    expected = torch.cat([transformers_filter(logits[i : i + 1], params) for i, params in enumerate(rows)])
    torch.testing.assert_close(filter_logits(logits, rows), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", ["normal", "equals", "wide"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_surely_kept_is_kept_and_hardly_anything_else_is(seed, shape):
    """Of every column where there are few; of those that are picked where there are many."""
    rng = np.random.default_rng(seed)
    params = random_params(rng)
    logits = torch.from_numpy(3 * rng.normal(size=(1, 49_152 if shape == "wide" else 101)).astype(np.float32))
    logits = logits.round() if shape == "equals" else logits
    drawn = pick(logits.expand(200, -1), [SamplingParams(params.temperature, seed=seed)] * 200, range(200))
    columns = drawn if shape == "wide" else torch.arange(101)
    kept = filter_logits(logits, [params])[0, columns].isfinite()
    sure = surely_kept(logits.expand(len(columns), -1), [params] * len(columns), columns)
    assert not (sure & ~kept).any()
    if shape != "equals" and params.top_p > 0.01 and params.min_p < 1:
        assert (kept & ~sure).sum() <= 1 + len(columns) // 20


@needs_compiler
def test_filters_sort_only_the_rows_whose_pick_they_may_refuse(tmp_path, monkeypatch):
    """Of twenty equals the filters of every other row keep all, and those of the others perhaps one."""
    decoder, widths = load("llama", tmp_path, torch.float32), []

    def counted(logits, sampling):
        widths.append(len(logits))
        return filter_logits(logits, sampling)

    monkeypatch.setattr(model.native.decoder, "filter_logits", counted)
    logits = torch.zeros(40, 1000).index_fill_(1, torch.arange(20), 9.0)
    sampling = [SamplingParams(seed=row, top_k=20 if row % 2 else 1, top_p=0.99) for row in range(40)]
    assert decoder.pick(logits, sampling, range(40)) == pick(logits, sampling, range(40)).tolist()
    assert 20 <= sum(widths) < 25


def test_temperature_zero_is_argmax_beside_sampled_rows():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [SamplingParams(temperature=0), SamplingParams(temperature=1, seed=4), SamplingParams(temperature=0)]
    picks = pick(logits, rows, [3, 4, 5])
    assert picks[[0, 2]].tolist() == logits.argmax(-1)[[0, 2]].tolist()
    assert picks[1] == (logits[1] + gumbel(torch.tensor([4]), torch.tensor([4]), 50)[0]).argmax()


@pytest.mark.parametrize("temperature", [1e-6, 1e-37, 1e-40, 5e-324])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert pick(logits, [SamplingParams(temperature=temperature)], [3]).item() == logits.argmax().item()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_is_picked_alike_alone_and_in_any_batch(seed):
    rng = np.random.default_rng(seed)
    rows = [random_params(rng) if rng.random() < 0.8 else SamplingParams(temperature=0) for _ in range(9)]
    logits = torch.from_numpy(rng.normal(size=(9, 77)).astype(np.float32))
    positions = rng.integers(0, 2000, 9).tolist()
    together = pick(logits, rows, positions).tolist()
    alone = [pick(logits[i : i + 1], rows[i : i + 1], positions[i : i + 1]).item() for i in range(9)]
    assert together == alone
    assert pick_with_confidence(logits, rows, positions)[0].tolist() == together


def test_confidence_is_the_largest_probability_when_greedy_and_grows_with_the_noisy_margin_otherwise():
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [90.0, 1.0, 0.0]])
    rows = [SamplingParams(temperature=0), SamplingParams(seed=1), SamplingParams(seed=1)]
    confidence = pick_with_confidence(logits, rows, [0, 0, 0])[1]
    assert confidence[0].item() == pytest.approx(logits[0].softmax(-1).max().item())
    assert 0 <= confidence[1] < confidence[2] <= 1


def table_walk(table: torch.Tensor, params: list[SamplingParams], same_noise: bool = False) -> np.ndarray:
    """Joint outcomes of three tokens from a Markov table, one walk per seed, as numbers in [0, V^3)."""
    num_tokens = table.shape[-1]
    state = torch.zeros(len(params), dtype=torch.int64)
    outcome = torch.zeros_like(state)
    for position in range(3):
        at = [0 if same_noise else position] * len(params)
        state = pick(table[state], params, at)
        outcome = outcome * num_tokens + state
    return outcome.numpy()


def joint_probabilities(table: torch.Tensor, params: SamplingParams) -> np.ndarray:
    step = filter_logits(table, [params] * len(table)).double().softmax(-1).numpy()
    return (step[0][:, None, None] * step[:, :, None] * step[None, :, :]).reshape(-1)


def smallest_p_value(outcomes: np.ndarray, probabilities: np.ndarray) -> float:
    """Exact binomial test of every joint outcome, Bonferroni over outcomes. An impossible outcome seen gives 0."""
    counts = np.bincount(outcomes, minlength=len(probabilities))
    tests = zip(counts, probabilities, strict=True)
    smallest = min(stats.binomtest(int(n), len(outcomes), min(float(p), 1.0)).pvalue for n, p in tests)
    return min(1.0, smallest * len(probabilities))


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.3},
    {"temperature": 0.9, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_coupled_sampling_draws_from_the_filtered_joint_distribution(settings):
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(7))
    params = [SamplingParams(**settings, seed=1000 + i) for i in range(20_000)]
    outcomes = table_walk(table, params)
    assert smallest_p_value(outcomes, joint_probabilities(table, params[0])) > 1e-3


def test_the_same_noise_at_every_position_is_caught():
    """Negative control: each token's own distribution stays right, only the joint one is wrong."""
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(7))
    params = [SamplingParams(seed=1000 + i) for i in range(20_000)]
    outcomes = table_walk(table, params, same_noise=True)
    assert smallest_p_value(outcomes, joint_probabilities(table, params[0])) < 1e-9
