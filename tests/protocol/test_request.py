import pytest

from protocol.errors import DraftPoolError, InvalidRequest, PromptTooLong, UserError
from protocol.request import SamplingParams, StopRules


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
