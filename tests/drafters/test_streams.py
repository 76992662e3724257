"""Streams in the drafter: the same drafts, as many heads as pay, and errors that say what a checkpoint lacks."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from drafters.manifest import MAX_STREAMS, Manifest, weight_name
from drafters.nested import NestedDrafter, load_nested
from drafters.residents import PoolLimits
from drafters.streams import KEPT, TRIAL_EVERY, TRIALS, Pace, StreamUse, choose
from model.decoder import Decoder
from model.load import load_decoder
from model.streams import StreamHead
from protocol.errors import ConfigError
from protocol.request import SamplingParams
from tests.drafters import test_nested
from tests.drafters.mirror import MirrorTarget
from tests.drafters.pool import DEEP, RULES, Pool, RandomTarget
from tests.model.families import EXECUTIONS

EXITS, HIDDEN, WIDTH = (1, 2, 4), 48, 24
HOT = SamplingParams(temperature=20.0, seed=9)  # where guesses are often right


def heads(count: int, hidden: int = HIDDEN) -> list[StreamHead]:
    draw = torch.Generator().manual_seed(1)
    shapes = (WIDTH, 2 * hidden), (hidden, WIDTH)
    return [StreamHead(*(torch.randn(shape, generator=draw) / 8 for shape in shapes)) for _ in range(count)]


@pytest.fixture(scope="module", params=EXECUTIONS)
def streaming(llama_directory: Path, request: pytest.FixtureRequest) -> Decoder:
    decoder = load_decoder(llama_directory, dtype=torch.float32, execution=request.param)
    for exit_ in EXITS:
        decoder.add_streams(exit_, heads(2))
    return decoder


@pytest.fixture
def checkpoint(llama_directory: Path, tmp_path: Path) -> Path:
    """A drafter with two streams at every exit."""
    folder = tmp_path / "drafter"
    shutil.copytree(llama_directory, folder)
    Manifest(EXITS, "", streams=2).save(folder)
    write_streams(folder, 2)
    return folder


def write_streams(folder: Path, count: int, hidden: int = HIDDEN) -> None:
    weights = {
        weight_name(exit_, stream, part): value
        for exit_ in EXITS
        for stream, head in enumerate(heads(count, hidden), 1)
        for part, value in head._asdict().items()
    }
    save_file(weights, folder / "streams.safetensors")


def load(folder: Path, streams: int | None = None) -> NestedDrafter:
    return load_nested(folder, dtype=torch.float32, num_positions=256, page_size=16, streams=streams)


@pytest.mark.parametrize("seed", range(3))
def test_drafts_with_streams_are_those_of_each_sequence_alone_from_scratch(streaming: Decoder, seed: int) -> None:
    sampling = [test_nested.GREEDY, HOT, SamplingParams(temperature=0.6, seed=8, top_k=40)]
    played = test_nested.Pool(streaming, 4, sampling, seed)
    played.drafter.streams = StreamUse(most=2)
    enough = streaming.num_passes + 15
    while streaming.num_passes < enough:
        played.step()
        played.verify()


@pytest.mark.parametrize("seed", range(2))
def test_a_pool_with_streams_answers_two_targets_that_accept_and_reject(streaming: Decoder, seed: int) -> None:
    rng = random.Random(seed)
    served = Pool(streaming, PoolLimits(max_ride=4, ahead=4), num_pages=512, page_size=2)
    served.drafter.streams = StreamUse(2, Pace(2), served.clock)
    targets = [RandomTarget(served, streaming, name, rng) for name in ("large", "small")]
    for target in targets:
        target.sampling[0] = HOT
    for _ in range(60):
        for target in targets:
            target.take_reply()
            if target.waiting is None and rng.random() < 0.5:
                target.ask(rng.choice(RULES))
        served.step()
    assert min(min(target.num_accepted, target.num_rejected) for target in targets) > 5
    assert served.drafter.streams.pace is not None
    assert served.drafter.streams.pace.told()


def test_branches_with_streams_are_those_of_a_fresh_drafter(streaming: Decoder) -> None:
    rng = random.Random(3)
    served = Pool(streaming, PoolLimits(ahead=4, idle_s=0.0), num_pages=512, page_size=2)
    served.drafter.streams = StreamUse(2)
    target = MirrorTarget(served, streaming, "large", rng)
    target.sampling = dict.fromkeys(target.texts, HOT)
    for _ in range(60):
        target.turn(DEEP)
        served.step()
    served.run()
    target.take()
    assert target.num_hits > 3


def test_as_many_streams_are_used_as_take_the_least_time_per_token() -> None:
    told = [[1.0] * TRIALS, [0.8] * TRIALS, [0.9] * TRIALS]
    assert choose(told, 1) == 1
    assert choose([told[0], told[2], told[1]], 1) == 2
    assert choose([told[1], told[0], told[2]], 1) == 0


def test_streams_that_save_next_to_nothing_are_left_alone() -> None:
    assert choose([[1.0] * TRIALS, [0.98] * TRIALS], 1) == 0
    assert choose([[1.0] * TRIALS, [0.96] * TRIALS], 1) == 1


def test_every_number_of_streams_is_tried_first_and_now_and_then() -> None:
    pace = Pace(2)
    ms_per_token = (1.0, 0.7, 2.0)
    played = []
    for _ in range(10 * TRIAL_EVERY):
        played.append(pace.choose(2, 1))
        pace.add(2, 1, played[-1], ms_per_token[played[-1]])
    assert sorted(played[: 3 * TRIALS]) == sorted([0, 1, 2] * TRIALS)
    later = played[3 * TRIALS :]
    assert {later.count(0), later.count(2)} == {5}
    assert pace.told() == {"2/1": [1.0, 0.7, 2.0]}


def test_a_slow_moment_does_not_drive_out_what_is_fast() -> None:
    times = [[1.0] * KEPT, [0.8] * (KEPT - 2) + [50.0] * 2]
    assert choose(times, 1) == 1


def test_exits_and_numbers_of_rows_are_judged_by_themselves() -> None:
    pace = Pace(1)
    for num_streams, alone, many in ((0, 1.0, 0.2), (1, 0.6, 0.4)):
        for _ in range(TRIALS):
            pace.add(4, 1, num_streams, alone)
            pace.add(4, 8, num_streams, many)
    assert (pace.choose(4, 1), pace.choose(4, 8), pace.choose(4, 9)) == (1, 0, 0)


def test_the_manifest_says_how_many_streams_there_are_and_all_of_them_compete(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    assert (loaded.streams.most, loaded.streams.pace) == (2, Pace(2))
    assert load(checkpoint, streams=1).streams == StreamUse(1)
    assert load(checkpoint, streams=0).streams == StreamUse()


def test_a_drafter_without_streams_has_none_and_refuses_to_use_any(llama_directory: Path) -> None:
    assert load(llama_directory).streams == StreamUse()
    with pytest.raises(ConfigError, match=r"streams: 1 are asked for, but .* has 0 at every exit"):
        load(llama_directory, streams=1)


def test_missing_and_unfitting_stream_weights_are_refused_by_name(checkpoint: Path) -> None:
    write_streams(checkpoint, 1)
    with pytest.raises(ConfigError, match=r"streams\.safetensors does not hold .* exit_1_stream_2_inner"):
        load(checkpoint)
    write_streams(checkpoint, 2, hidden=32)
    with pytest.raises(ConfigError, match="do not fit a hidden size of 48"):
        load(checkpoint)
    (checkpoint / "streams.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"streams\.safetensors is missing, though the manifest"):
        load(checkpoint)
    assert load(checkpoint, streams=0).streams == StreamUse()


@pytest.mark.parametrize("streams", [-1, MAX_STREAMS + 1, "two", True, 1.5])
def test_a_manifest_with_an_impossible_number_of_streams_is_refused(checkpoint: Path, streams: object) -> None:
    told = json.loads((checkpoint / "draftpool.json").read_text())
    (checkpoint / "draftpool.json").write_text(json.dumps({**told, "streams": streams}))
    with pytest.raises(ConfigError, match=r"draftpool\.json: streams must be"):
        load(checkpoint)
