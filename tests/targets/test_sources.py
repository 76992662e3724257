"""Where tokens came from: what runs tell of them is what the records of their rounds say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.decoder import Decoder
from protocol.record import Origin, RoundRecord, RowRecord
from protocol.request import OWN, GenerateRequest, TokenRun
from targets.engine import Engine
from tests.model.families import VOCAB
from tests.reference.drafting import next_from_scratch
from tests.reference.engine import Collector, random_requests
from tests.targets.ahead import EXITS, Connect, Whimsical, engine_of
from tests.targets.conftest import LoadTarget


class Told(Collector):
    """Gathers sources too."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, list[int]] = {}

    def __call__(self, run: TokenRun) -> None:
        self.sources.setdefault(run.request_id, []).extend(run.sources)
        super().__call__(run)


def expected(records: tuple[RoundRecord, ...], sequence_id: int) -> list[int]:
    """Token by token: the first is of the prompt's pass, and each round ends with the target's own."""
    told = [OWN]
    for row in (row for record in records for row in record.rows if row.sequence_id == sequence_id):
        depth = row.depth or OWN
        told += [*[depth if row.origin is Origin.FRESH else -depth] * row.num_accepted, OWN]
    return told


def asked(seed: int) -> list[GenerateRequest]:
    return random_requests(seed, 4, VOCAB, max_tokens=28)


def ask(engine: Engine, seed: int, *, tells: bool) -> Told:
    requests, told = asked(seed), Told()
    for request in requests:
        engine.submit(replace(request, tells_sources=tells), told)
    with engine:
        told.wait(len(requests))
    return told


@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_told_with_its_exit_and_whether_it_was_drafted_ahead(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    engine = engine_of(load, Connect(drafter)(), Whimsical(seed))
    told = ask(engine, seed, tells=True)
    requests = {request.request_id: request for request in asked(seed)}
    for number, (name, tokens) in enumerate(told.tokens.items()):
        whole = expected(engine.last_rounds(), int(name) if name.isdigit() else number)
        assert told.sources[name] == whole[: len(tokens)], "a stop cuts the last round"
        for place, depth in enumerate(map(abs, told.sources[name])):
            request, before = requests[name], (*requests[name].prompt_ids, *tokens[:place])
            assert not depth or next_from_scratch(drafter, before, depth, request.sampling)[0] == tokens[place]
    every = {source for sources in told.sources.values() for source in sources}
    assert every <= {OWN, *EXITS, *(-exit_ for exit_ in EXITS)}
    assert min(every) < OWN < max(every)


def test_a_request_that_does_not_ask_is_told_nothing(load: LoadTarget, drafter: Decoder) -> None:
    told = ask(engine_of(load, Connect(drafter)(), Whimsical(1)), 1, tells=False)
    assert set(map(tuple, told.sources.values())) == {()}
    assert all(told.tokens.values())


def test_what_was_proposed_and_refused_is_no_source() -> None:
    row = RowRecord(1, 3, 1, Origin.AHEAD, 4, 3)
    assert row.sources == (-4, OWN)
    assert replace(row, origin=Origin.FRESH, num_accepted=3).sources == (4, 4, 4, OWN)
    assert RowRecord(1).sources == (OWN,)


def test_a_token_that_a_grammar_forces_is_one_that_nobody_drafted() -> None:
    row = RowRecord(1, 4, 4, Origin.FRESH, 2, 4, num_forced=2)
    assert row.sources == (2, 2, OWN, OWN, OWN)
    assert replace(row, num_accepted=1).sources == (2, OWN)
    assert RowRecord(1, 3, 3, Origin.FORCED, num_forced=3).sources == (OWN,) * 4
