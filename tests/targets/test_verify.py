import itertools

import pytest

from targets.verify import num_accepted


@pytest.mark.parametrize(
    ("picks", "draft", "accepted"),
    [
        ([7], [], 0),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2, 3], [9, 2], 0),
        ([1, 2, 3], [1, 9], 1),
        ([1, 2, 3, 4], [1, 9, 3], 1),
    ],
)
def test_a_draft_token_is_accepted_until_the_first_that_is_not_the_targets_pick(picks, draft, accepted):
    assert num_accepted(picks, draft) == accepted


def test_a_target_that_picks_by_prefix_commits_its_own_text_whatever_the_draft():
    """Enumerates every draft of three tokens over a vocabulary of three against a deterministic target."""

    def target(prefix: tuple[int, ...]) -> int:
        return (sum(prefix) + 2 * len(prefix) + 1) % 3

    plain: tuple[int, ...] = ()
    while len(plain) < 4:
        plain += (target(plain),)
    for draft in itertools.product(range(3), repeat=3):
        picks = [target(draft[:i]) for i in range(4)]
        run = picks[: num_accepted(picks, draft) + 1]
        assert tuple(run) == plain[: len(run)]
