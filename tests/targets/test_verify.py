import itertools

from targets.verify import num_accepted


def test_what_is_committed_is_the_targets_own_text_and_as_much_of_a_draft_as_is_in_it():
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
        assert len(run) == 4 or draft[len(run) - 1] != run[-1], "a right token was refused"
    assert num_accepted([7], []) == 0
