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


def test_a_stop_token_inside_a_run_ends_the_sequence_and_what_follows_is_gone():
    seq = sequence()
    assert seq.commit([5, 0, 6]) == (5, 0)
    assert seq.finish_reason is FinishReason.STOP
    assert seq.tokens[-2:] == [5, 0]


def test_max_tokens_inside_a_run_ends_the_sequence():
    seq = sequence(max_tokens=2)
    assert seq.commit([5, 6, 7]) == (5, 6)
    assert seq.finish_reason is FinishReason.LENGTH


def test_the_context_length_ends_the_sequence_too():
    seq = sequence(num_prompt=4, max_tokens=100, max_length=6)
    assert seq.remaining == 2
    seq.commit([5, 6])
    assert seq.finish_reason is FinishReason.LENGTH


def test_a_stop_token_that_is_the_last_allowed_token_is_a_stop():
    seq = sequence(max_tokens=1)
    seq.commit([0])
    assert seq.finish_reason is FinishReason.STOP


def test_a_fresh_prompt_is_prefilled_whole_and_a_resumed_one_leaves_its_newest_token_to_a_round():
    seq = sequence(num_prompt=4)
    assert (seq.prefill_end, seq.is_decoding) == (4, False)
    seq.computed = 4
    seq.commit([9])
    assert (seq.prefill_end, seq.is_decoding) == (4, True)
    seq.commit([9, 9])
    seq.computed = 0
    assert (seq.prefill_end, seq.is_decoding) == (6, False)
