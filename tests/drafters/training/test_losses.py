"""The sorted loss is what an obvious loop over exits, positions and tokens says."""

import math

import pytest
import torch
from torch import Tensor

from drafters.training.losses import SMALLEST_REST, sorted_loss, teacher_divergence

VOCABULARY, POSITIONS, KEPT = 11, 5, 4


def teacher(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(POSITIONS, VOCABULARY, generator=generator).log_softmax(-1)
    values, ids = full.topk(KEPT)
    return ids, values


def slow_divergence(logits: list[float], ids: list[int], values: list[float]) -> float:
    total = sum(math.exp(x) for x in logits)
    mine = [math.exp(x) / total for x in logits]
    theirs = [math.exp(x) for x in values]
    kept = sum(p * math.log(p / mine[i]) for i, p in zip(ids, theirs, strict=True))
    rest, my_rest = 1 - sum(theirs), 1 - sum(mine[i] for i in ids)
    return kept + rest * math.log(rest / my_rest)


def slow_loss(logits: list[Tensor], labels: Tensor, teachers: list[tuple[Tensor, Tensor]], weight: float) -> float:
    total = 0.0
    for at_exit in logits:
        for n, row in enumerate(at_exit.tolist()):
            total += math.log(sum(math.exp(x) for x in row)) - row[int(labels[n])]
            for ids, values in teachers:
                total += weight / len(teachers) * slow_divergence(row, ids[n].tolist(), values[n].tolist())
    return total / len(logits) / POSITIONS


def test_it_is_the_mean_over_exits_of_next_token_loss_and_divergence_from_all_teachers() -> None:
    logits = [torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)]
    labels = torch.tensor([0, 3, 10, 5, 3])
    teachers = [teacher(4), teacher(5)]
    ids, values = (torch.stack([pair[side] for pair in teachers]) for side in (0, 1))
    loss = sorted_loss(logits, labels, ids, values, weight=0.7)
    assert loss.item() == pytest.approx(slow_loss(logits, labels, teachers, 0.7), rel=1e-5)


def test_exits_count_by_the_ratios_of_their_weights() -> None:
    logits = [torch.randn(POSITIONS, VOCABULARY) for _ in range(2)]
    labels, none = torch.tensor([1, 2, 3, 4, 5]), torch.zeros(0, POSITIONS, 0)
    shallow, deep = (sorted_loss([at_exit], labels, none, none, 1.0) for at_exit in logits)
    loss = sorted_loss(logits, labels, none, none, 1.0, exit_weights=(0.5, 1.5))
    torch.testing.assert_close(loss, shallow / 4 + 3 * deep / 4)


def test_without_teachers_it_is_plain_sorted_fine_tuning() -> None:
    logits = [torch.randn(POSITIONS, VOCABULARY) for _ in range(2)]
    labels = torch.tensor([1, 2, 3, 4, 5])
    none = torch.zeros(0, POSITIONS, 0)
    loss = sorted_loss(logits, labels, none, none, weight=1.0)
    expected = sum(torch.nn.functional.cross_entropy(at_exit, labels) for at_exit in logits) / 2
    assert torch.isclose(loss, torch.as_tensor(expected))


def test_a_drafter_that_equals_its_teacher_has_no_divergence() -> None:
    ids, values = teacher(6)
    rest = (1 - values.exp().sum(-1)) / (VOCABULARY - KEPT)
    log_probs = rest.log()[:, None].expand(-1, VOCABULARY).scatter(1, ids, values)
    assert teacher_divergence(log_probs, ids, values).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_that_is_certain_gives_finite_gradients() -> None:
    logits = torch.zeros(1, VOCABULARY, requires_grad=True)
    ids, values = torch.tensor([[0, 1]]), torch.tensor([[0.0, -30.0]])
    teacher_divergence(logits.log_softmax(-1), ids, values).backward()  # type: ignore[no-untyped-call]
    assert SMALLEST_REST > 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_tokens_without_a_row_are_left_out_and_the_teacher_is_raised_to_make_up_for_them() -> None:
    """As if the teacher could not have said them; labels without a row do not count."""
    logits = torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, -1, 10, 5, -1])
    ids, values = teacher(4)
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[0, 1] = hidden[2, 3] = hidden[3, 0] = True
    expected = 0.0
    for n, row in enumerate(logits.tolist()):
        left = 1 - sum(math.exp(x) for x, out in zip(values[n].tolist(), hidden[n].tolist(), strict=True) if out)
        kept = [i for i in range(KEPT) if not hidden[n, i]]
        raised = [values[n, i].item() - math.log(left) for i in kept]
        expected += 0.7 * slow_divergence(row, ids[n, kept].tolist(), raised) / POSITIONS
        if labels[n] >= 0:
            expected += (math.log(sum(math.exp(x) for x in row)) - row[int(labels[n])]) / 3
    asked = ids.masked_fill(hidden, -1)[None], values[None]
    assert sorted_loss([logits], labels, *asked, weight=0.7).item() == pytest.approx(expected, rel=1e-5)
