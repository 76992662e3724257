"""The arithmetic of what the demo shows."""

from __future__ import annotations

from collections.abc import Sequence

from cli.demo_asking import COMPLETION, DemoRequest
from cli.demo_family import CODE, fit_to_cores
from cli.demo_gain import Gain, describe_run, measure
from cli.demo_streams import StreamedCompletion
from deployments.config import load_config

ASK = DemoRequest(COMPLETION, "import os", 8)


def test_the_demo_says_on_what_it_ran() -> None:
    told = describe_run(fit_to_cores(load_config(CODE), 2), 2, {"native kernels, avx2"})
    listed = "replicas: large 1 x 1 thread, small 1 x 1 thread, drafter 1 x 1 thread"
    assert told == f"2 cores; {listed}; steps by native kernels, avx2"


def completion(rate: float, text: str = "a", accepted: int = 0) -> StreamedCompletion:
    return StreamedCompletion(
        "large", text, num_tokens=101, num_rounds=50, num_accepted=accepted, last_s=100 / rate, first_s=0
    )


def test_a_gain_is_the_median_of_what_pairs_made() -> None:
    pairs = [(completion(on, accepted=75), completion(off)) for on, off in ((20, 10), (30, 10), (90, 100))]
    found = Gain.of(pairs)
    assert (found.with_drafts, found.without, found.gain) == (30, 10, 2.0)
    assert found.accepted_per_round == 1.5
    assert found.same_text


def test_one_text_that_differs_is_reported() -> None:
    pairs = [(completion(2), completion(1)), (completion(2, "b"), completion(1, "a"))]
    assert not Gain.of(pairs).same_text


def test_the_two_ways_take_turns_in_coming_first() -> None:
    asked: list[str] = []

    def ask_all(ask: DemoRequest) -> Sequence[StreamedCompletion]:
        asked.append(ask.speculation)
        return [StreamedCompletion(name, ask.speculation) for name in ("large", "small")]

    pairs = [measure(ask_all, ASK, index) for index in range(2)]
    assert asked == ["off", "auto", "auto", "off"]
    assert [[(on.text, off.text) for on, off in pair] for pair in pairs] == [[("auto", "off")] * 2] * 2
