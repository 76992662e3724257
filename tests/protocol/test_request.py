import pytest

from protocol.errors import DraftPoolError, InvalidRequest, PromptTooLong, UserError
from protocol.logit_rules import MAX_BIASED, MAX_TOLD, LogitRules, check_rules
from protocol.request import GenerateRequest, SamplingParams, StopRules


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_a_sampling_parameter_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_max_tokens_below_one_is_refused():
    with pytest.raises(InvalidRequest, match="max_tokens 0"):
        StopRules(0)


def test_errors_that_a_caller_can_mend_are_value_errors_and_all_are_ours():
    error = PromptTooLong("the prompt is long", "prompt")
    assert isinstance(error, InvalidRequest | UserError | ValueError | DraftPoolError)
    assert (str(error), error.param) == ("the prompt is long", "prompt")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("presence_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("min_tokens", -1),
    ],
)
def test_a_logit_rule_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=f"{field} {value} .*turns it off") as caught:
        LogitRules(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("bias", [100.5, -101, float("nan"), float("-inf")])
def test_a_bias_out_of_range_is_refused_with_its_token(bias):
    with pytest.raises(InvalidRequest, match=f"logit_bias {bias} of token 7") as caught:
        LogitRules(((7, bias),))
    assert caught.value.param == "logit_bias"


def test_more_biases_than_a_request_may_hold_are_refused():
    LogitRules(tuple((token, 1.0) for token in range(MAX_BIASED)))
    with pytest.raises(InvalidRequest, match="send 1024 at most"):
        LogitRules(tuple((token, 1.0) for token in range(MAX_BIASED + 1)))


def test_min_tokens_beyond_max_tokens_are_refused():
    with pytest.raises(InvalidRequest, match="min_tokens 5 exceeds max_tokens 4") as caught:
        GenerateRequest("r", (1,), SamplingParams(), StopRules(4), rules=LogitRules(min_tokens=5))
    assert caught.value.param == "min_tokens"


def test_rules_that_leave_no_token_or_name_one_that_is_not_there_are_refused():
    check_rules(LogitRules(((9, 1.0),), min_tokens=1, withheld=frozenset(range(9))), 10)
    with pytest.raises(InvalidRequest, match="all 10 of them stop"):
        check_rules(LogitRules(min_tokens=1, withheld=frozenset(range(12))), 10)
    for token in (-1, 10):
        with pytest.raises(InvalidRequest, match=f"token {token}, which is outside the vocabulary of 10"):
            check_rules(LogitRules(((token, 1.0),)), 10)


def test_more_logprobs_than_a_request_may_ask_for_are_refused():
    def asking(count, max_tokens=4):
        return GenerateRequest("r", (1,), SamplingParams(), StopRules(max_tokens), logprobs=count)

    assert [asking(count).logprobs for count in (None, 0, 20)] == [None, 0, 20]
    for count in (-1, 21):
        with pytest.raises(InvalidRequest, match=f"logprobs {count} is not in .0, 20.; send 20 at most"):
            asking(count)
    asking(20, MAX_TOLD // 21)
    with pytest.raises(InvalidRequest, match=f"ask for {MAX_TOLD // 21} tokens at most") as caught:
        asking(20, MAX_TOLD // 21 + 1)
    assert caught.value.param == "max_tokens"
