import pytest

from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules
from targets.sequence import Sequence, cut


def sequence(num_prompt: int = 4, max_tokens: int = 8, stop: tuple[int, ...] = (0,), max_length: int = 64) -> Sequence:
    request = GenerateRequest(
        "r", tuple(range(1, num_prompt + 1)), SamplingParams(), StopRules(max_tokens, frozenset(stop))
    )
    return Sequence(0, request, max_length)


@pytest.mark.parametrize(
    ("run", "room", "kept"),
    [
        ([5, 6, 7], 8, (5, 6, 7)),
        ([5, 0, 7], 8, (5, 0)),
        ([0], 8, (0,)),
        ([5, 6, 0], 2, (5, 6)),
        ([5, 0, 0], 8, (5, 0)),
    ],
)
def test_a_run_is_cut_behind_its_first_stop_token_and_at_the_room_left(run, room, kept):
    assert cut(run, room, frozenset({0})) == kept


@pytest.mark.parametrize(
    ("limits", "run", "kept", "reason"),
    [
        ({}, [5, 0, 6], (5, 0), FinishReason.STOP),
        ({"max_tokens": 2}, [5, 6, 7], (5, 6), FinishReason.LENGTH),
        ({"max_tokens": 100, "max_length": 6}, [5, 6], (5, 6), FinishReason.LENGTH),
        ({"max_tokens": 1}, [0], (0,), FinishReason.STOP),
        ({}, [5, 6], (5, 6), None),
    ],
)
def test_a_sequence_ends_inside_a_run_at_a_stop_token_or_where_its_room_does(limits, run, kept, reason):
    member = sequence(**limits)
    assert member.commit(run) == kept
    assert (member.finish_reason, tuple(member.tokens[4:])) == (reason, kept)


def test_a_fresh_prompt_is_prefilled_whole_and_a_resumed_one_leaves_its_newest_token_to_a_round():
    seq = sequence(num_prompt=4)
    assert (seq.prefill_end, seq.is_decoding) == (4, False)
    seq.computed = 4
    seq.commit([9])
    assert (seq.prefill_end, seq.is_decoding) == (4, True)
    seq.commit([9, 9])
    seq.computed = 0
    assert (seq.prefill_end, seq.is_decoding) == (6, False)
