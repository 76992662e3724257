"""The harness over real engines, on tiny models in fp32: every engine writes our plain loop's text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cells import Cell, CellOutcome, Subject, TokenIds, Unavailable
from bench.grid import Grid
from bench.ours import DraftPoolEngine
from bench.peers import llamacpp, openvino
from bench.peers.imported import imported
from bench.peers.llamacpp import LlamaCppEngine
from bench.peers.openvino import OpenVinoEngine
from bench.peers.url import UrlEngine
from bench.run import measure, opened
from bench.workload import PromptText, Workload, read_texts
from cli.main import main
from drafters.training.distil import logits_at
from model.gguf.unpack import GGUF_NAME, unpack
from tests.api.api_twins import EngineBackend, card, make_engine, tiny_tokenizer
from tests.api.served import served
from tests.deployments.checkpoints import make_family
from tests.model.families import make_checkpoint
from tests.model.gguf.files import write_gguf

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def subject(family: Path) -> Subject:
    return Subject(family / "large", family / "drafter", torch.float32, 1, max_batch=3, max_length=256)


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(5)))
    return Workload(read_texts(file, tiny_tokenizer()), "equal", 3)


MODES = ("plain", "fixed", "generate", "assisted", "lookup", "continuous")


def test_every_engine_writes_the_plain_loops_text(subject: Subject, workload: Workload) -> None:
    cells = Grid(MODES[:-1], (1, 3), (4, 2), (3,)).cells()
    cells += [Cell("plain", 2), Cell("fixed", 2, 4, 3, queue=3), Cell("generate", 2, queue=3), Cell("continuous", 2)]
    with opened(subject, MODES) as engines:
        results = measure(engines, cells, workload, repeat=2, max_tokens=MAX_TOKENS)
        assert engines.left_out == {}
    assert [result.cell for result in results] == cells
    assert {result.identical for result in results} == {1.0}
    for result in results:
        assert len(result.tokens_per_second) == 2
        assert min(result.tokens_per_second) > 0
        assert (result.speedup is None) is (result.cell.queue > 0)  # no plain loop was kept full
        # The drafter is the target, so all of a whole draft is accepted; lookups find what they find.
        if result.cell.depth == 4 or result.cell.mode == "assisted":
            assert result.acceptance_rate == pytest.approx(1.0)
            assert result.mean_acceptance_length is not None
            assert result.mean_acceptance_length > 3
        assert (result.draft_ms_per_token == []) is (result.cell.mode != "fixed")


def test_a_drafter_in_the_benchs_own_process_costs_no_link(subject: Subject) -> None:
    with opened(subject, ["plain"]) as engines:
        costs = engines.ours._measured().drafter
    assert costs is not None
    assert {costs.link.at(rows) for rows in (1, 3)} == {0.0}


def test_a_text_that_differs_is_counted(subject: Subject, workload: Workload) -> None:
    class Wrong(Unplugged):
        def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
            return engines.ours.run(cell, [prompts[0]] * len(prompts), max_tokens)

    with opened(subject, ()) as engines:
        engines.by_mode["generate"] = Wrong()
        (result,) = measure(engines, [Cell("generate", 3)], workload, repeat=1, max_tokens=MAX_TOKENS)
    assert result.identical == pytest.approx(1 / 3)


def test_sampled_text_is_compared_where_the_noise_is_ours(subject: Subject, workload: Workload) -> None:
    cells = Grid(("plain", "fixed", "generate"), (2,), (4,), (2,), (0.8,)).cells()
    with opened(subject, ("plain", "fixed", "generate")) as engines:
        results = measure(engines, cells, workload, repeat=1, max_tokens=MAX_TOKENS)
    assert [result.identical for result in results] == [1.0, 1.0, None]


class Unplugged:
    name, version, shares_noise = "unplugged", "1", False

    def open(self) -> None:
        pass

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        raise Unavailable("pulled out")

    def close(self) -> None:
        pass


def test_an_engine_that_dies_loses_its_column_and_the_others_go_on(subject: Subject, workload: Workload) -> None:
    with opened(subject, ("plain",)) as engines:
        engines.by_mode |= dict.fromkeys(("assisted", "lookup"), Unplugged())
        cells = [Cell("lookup", 1, length=2), Cell("plain", 1), Cell("assisted", 1, length=2)]
        results = measure(engines, cells, workload, repeat=2, max_tokens=MAX_TOKENS)
    assert [result.cell.mode for result in results] == ["plain"]
    assert engines.left_out == {"lookup": "pulled out", "assisted": "pulled out"}


def test_openvino_without_its_environment_says_what_to_run(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="make bench-peers"):
        OpenVinoEngine(subject, ["openvino"], tmp_path / "absent").open()


@pytest.mark.slow
@pytest.mark.skipif(not openvino.ENVIRONMENT.exists(), reason="make bench-peers has not been run")
def test_openvino_writes_the_same_text_plain_and_with_its_drafter(subject: Subject, workload: Workload) -> None:
    subject = Subject(subject.target, subject.drafter, torch.float32, 2, subject.max_batch, subject.max_length)
    modes = ("openvino", "openvino-draft")
    with opened(subject, modes) as engines:
        assert engines.left_out == {}
        results = measure(engines, Grid(modes, (1, 3), (), (3,)).cells(), workload, repeat=1, max_tokens=MAX_TOKENS)
    assert [result.identical for result in results] == [1.0] * 4


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Our own API over a real engine, on a free loopback port."""
    engine = make_engine(tmp_path)
    with served(EngineBackend(engine, card(max_model_len=engine.max_length))) as url:
        yield url
    engine.stop()


def test_a_server_by_url_is_measured_from_its_stream(url: str) -> None:
    engine = UrlEngine(url)
    engine.open()
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12]]
    outputs = engine.run(Cell("url", 2), prompts, MAX_TOKENS).outputs
    assert engine.version == "tiny"
    assert [len(output.token_ids) for output in outputs] == [MAX_TOKENS] * 3
    assert all(list(output.arrived) == sorted(output.arrived) for output in outputs)
    alone = engine.run(Cell("url", 1), prompts[:1], MAX_TOKENS).outputs[0]
    assert alone.token_ids == outputs[0].token_ids


def test_a_server_that_is_not_there_or_has_another_model_is_unavailable(url: str) -> None:
    with pytest.raises(Unavailable, match="it serves tiny, not other"):
        UrlEngine(url, "other").open()
    with pytest.raises(Unavailable, match="does not answer"):
        UrlEngine("http://127.0.0.1:9").open()


def test_the_command_writes_lines_a_table_and_a_file(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out/result.json"
    argv = ["bench", "--target", str(family / "large"), "--drafter", str(family / "drafter"), "--batch", "1,2"]
    argv += ["--modes", "plain,fixed", "--depths", "2,4", "--lengths", "1,3", "--workload", "equal"]
    argv += ["--num-prompts", "2", "--max-tokens", "6", "--dtype", "fp32", "--threads", "1", "--repeat", "2"]
    assert main([*argv, "--json", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    report = json.loads(out.read_text())
    assert report["cells"] == lines
    assert [(line["mode"], line["batch"], line["depth"], line["length"]) for line in lines[:3]] == [
        ("plain", 1, None, 0),
        ("fixed", 1, 2, 1),
        ("fixed", 1, 2, 3),
    ]
    assert {len(line["tokens_per_second"]) for line in lines} == {2}
    assert {line["identical"] for line in lines} == {1.0}
    assert {"commit", "command", "cpu"} <= report["machine"].keys()
    assert out.with_suffix(".md").read_text().count("\n| ") == len(lines) + 1


def test_an_interrupted_run_keeps_the_repetitions_of_every_cell_that_it_finished(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = DraftPoolEngine.run, itertools.count()

    def run(engine: DraftPoolEngine, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        if next(calls) == 5:  # after the warm-up of both cells, one repetition, and another of the first cell
            raise KeyboardInterrupt
        return real(engine, cell, prompts, max_tokens)

    monkeypatch.setattr(DraftPoolEngine, "run", run)
    out = tmp_path / "result.json"
    argv = ["bench", "--target", str(family / "large"), "--drafter", str(family / "drafter"), "--batch", "1"]
    argv += ["--modes", "plain,fixed", "--depths", "4", "--lengths", "3", "--workload", "equal", "--num-prompts", "1"]
    argv += ["--max-tokens", "6", "--dtype", "fp32", "--threads", "1", "--repeat", "4", "--out", str(out)]
    assert main(argv) == 130
    cells = json.loads(out.read_text())["cells"]
    assert [(cell["mode"], len(cell["tokens_per_second"]), cell["identical"]) for cell in cells] == [
        ("plain", 2, 1.0),
        ("fixed", 1, 1.0),
    ]
    assert cells[1]["speedup"]["num_pairs"] == 1
    assert "Medians of 1 interleaved" in out.with_suffix(".md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.md"]


def test_an_unknown_mode_is_a_usage_error(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--target", str(family / "large"), "--modes", "plain,roads"])
    assert "'roads' is unknown; choose from plain, fixed, ema, goodput, nostop, generate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--modes", "fixed"], "need --drafter"),
        (["--modes", "url"], "--url"),
        (["--modes", "llamacpp-draft"], "needs --draft-gguf"),
        (["--prompts", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
    ],
)
def test_a_command_that_cannot_run_is_refused_at_once(
    family: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["bench", "--target", str(family / "large"), "--modes", "plain", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_llama_cpp_without_a_file_or_its_environment_says_what_to_do(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="give one as --target"):
        LlamaCppEngine(subject, tmp_path / "absent").open()
    (tmp_path / GGUF_NAME).touch()
    with pytest.raises(Unavailable, match="make bench-peers"):
        LlamaCppEngine(replace(subject, target=tmp_path), tmp_path / "absent").open()


def test_transformers_reads_a_gguf_file_that_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.gguf.unpack.cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setattr("bench.peers.imported.ROOT", tmp_path)
    file = write_gguf(make_checkpoint("qwen3", tmp_path / "hf", seed=0), tmp_path / "tiny.gguf")
    subject = Subject(unpack(file), unpack(file), torch.float32, 1, max_batch=2, max_length=128)
    workload = Workload((PromptText(tuple(range(3, 60))),), "own", 1)
    modes = ("generate", "assisted", "continuous")
    with opened(subject, modes) as engines:
        results = measure(engines, Grid(modes, (1,), (), (3,)).cells(), workload, repeat=1, max_tokens=MAX_TOKENS)
        assert engines.left_out == {}
    assert [result.identical for result in results] == [1.0] * 3
    assert len(list((tmp_path / "bench/.cache/imported").iterdir())) == 1


def test_a_trimmed_head_is_ours_alone(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "hf", seed=0)
    config = json.loads((folder / "config.json").read_text())
    config |= {"head_token_ids": [1, 2], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unavailable, match="give the checkpoint behind it"):
        imported(folder, torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not llamacpp.ENVIRONMENT.exists(), reason="make bench-peers has not been run")
def test_llama_cpp_tells_its_passes_and_its_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.gguf.unpack.cache_directory", lambda: tmp_path / "cache")
    file = write_gguf(make_checkpoint("qwen3", tmp_path / "hf", seed=0), tmp_path / "tiny.gguf")
    subject = Subject(unpack(file), None, torch.float32, 1, max_batch=2, max_length=128, draft_gguf=file)
    modes = ("llamacpp", "llamacpp-draft", "llamacpp-ngram")
    workload = Workload((PromptText(tuple(range(3, 60))),), "own", 2)
    with opened(subject, modes) as engines:
        cells = Grid(modes, (1, 2), (), (3,)).cells()
        results = measure(engines, cells, workload, repeat=1, max_tokens=MAX_TOKENS)
        assert engines.left_out == {}
        peer = engines.by_mode["llamacpp"]
        assert isinstance(peer, LlamaCppEngine)
        window = list(range(3, 40))
        theirs = torch.tensor(peer.log_probabilities(window))
        (logits,) = logits_at(engines.ours.model.decoder, window, [4])
    ours = logits[:-1].log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None])[:, 0]
    torch.testing.assert_close(theirs, ours, atol=0.02, rtol=0.02)
    assert all(min(result.prompt_tokens_per_second) > 0 for result in results)
    # The draft model is the target, so it is right but where a batch of another width rounds otherwise.
    drafted = [result for result in results if result.cell.mode == "llamacpp-draft"]
    assert [result.acceptance_rate for result in drafted] == [pytest.approx(1.0, abs=0.2)] * 2
    assert all(result.mean_acceptance_length is not None and result.mean_acceptance_length > 2 for result in drafted)
