"""Every supported family against transformers' own model; every other refused by name."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from model import files
from model.batch import BatchRow, build_batch
from model.config import FAMILIES, read_config
from model.decoder import Decoder
from model.execution import Execution
from model.files import resolve
from model.load import load_decoder
from model.pages import PageLedger
from protocol.errors import ConfigError, UnsupportedModel
from tests.model.families import EOS, EXECUTIONS, NAMES, VOCAB, WINDOW, make_checkpoint

CPU = torch.device("cpu")


class Sequences:
    """Token sequences in one decoder's paged KV: the least that an engine would do."""

    def __init__(self, decoder: Decoder, num_slots: int = 512, page_size: int = 16) -> None:
        self.decoder = decoder
        self.ledger = PageLedger(num_slots // page_size, page_size)
        self.kv = decoder.new_kv(num_slots)
        self.lengths: dict[int, int] = {}

    def forward(self, new_tokens: dict[int, Tensor], cuts: tuple[int, ...] = ()) -> dict[int, Tensor]:
        """new_tokens: sequence -> [n]. Returns sequence -> logits [n, vocab]. Layers run in pieces cut at `cuts`."""
        rows = []
        for sequence, tokens in new_tokens.items():
            if sequence not in self.lengths:
                self.ledger.open(sequence)
            self.lengths[sequence] = self.lengths.get(sequence, 0) + len(tokens)
            assert self.ledger.reserve(sequence, self.lengths[sequence])
            rows.append(BatchRow(self.ledger.slots(sequence)[: self.lengths[sequence]], len(tokens)))
        batch = build_batch(rows)
        bounds = (0, *cuts, self.decoder.config.num_layers)
        with torch.inference_mode():
            hidden = self.decoder.embed(torch.cat(list(new_tokens.values())).tolist())
            for start, stop in itertools.pairwise(bounds):
                hidden = self.decoder.run(hidden, batch, self.kv, start, stop)
            logits = self.decoder.logits(hidden, range(len(hidden))).clone()
        return dict(zip(new_tokens, logits.split_with_sizes([row.num_new for row in rows]), strict=True))

    def truncate(self, sequence: int, length: int) -> None:
        self.ledger.truncate(sequence, length)
        self.lengths[sequence] = length

    def greedy(self, prompt: Tensor, num_tokens: int) -> list[int]:
        logits = self.forward({0: prompt})[0]
        tokens = [int(logits[-1].argmax())]
        while len(tokens) < num_tokens:
            tokens.append(int(self.forward({0: torch.tensor(tokens[-1:])})[0][-1].argmax()))
        return tokens


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param), seed=7)


@pytest.fixture(scope="module", params=EXECUTIONS)
def decoder(checkpoint: Path, request: pytest.FixtureRequest) -> Decoder:
    return load_decoder(checkpoint, dtype=torch.float32, execution=request.param)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def random_tokens(seed: int, length: int) -> Tensor:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def oracle_logits(oracle: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = oracle(tokens[None]).logits[0]
    return logits


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_one_prefill_gives_the_logits_of_transformers(decoder: Decoder, oracle: Any) -> None:
    tokens = random_tokens(0, 5 * WINDOW)
    assert_same(Sequences(decoder).forward({0: tokens})[0], oracle_logits(oracle, tokens))


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_prompt_in_chunks_gives_the_same_logits(decoder: Decoder, oracle: Any, page_size: int) -> None:
    tokens = random_tokens(1, 75)
    sequences = Sequences(decoder, page_size=page_size)
    chunks = [sequences.forward({0: chunk})[0] for chunk in tokens.split_with_sizes([40, 5, 1, 29])]
    assert_same(torch.cat(chunks), oracle_logits(oracle, tokens))


def test_a_prefill_chunk_and_verify_rows_share_a_pass(decoder: Decoder, oracle: Any) -> None:
    prompts = {sequence: random_tokens(10 + sequence, length) for sequence, length in enumerate((30, 61, 9, 45))}
    sequences = Sequences(decoder)
    sequences.forward({s: prompts[s][:-5] for s in (0, 1)})
    logits = sequences.forward({2: prompts[2], 1: prompts[1][-5:-1], 3: prompts[3][:40], 0: prompts[0][-5:]})
    assert_same(logits[0], oracle_logits(oracle, prompts[0])[-5:])
    assert_same(logits[1], oracle_logits(oracle, prompts[1])[-5:-1])
    assert_same(logits[2], oracle_logits(oracle, prompts[2]))
    assert_same(logits[3], oracle_logits(oracle, prompts[3][:40]))


def test_a_pass_may_stop_at_any_layer_and_go_on(decoder: Decoder, oracle: Any) -> None:
    tokens = random_tokens(2, 33)
    for cuts in [(1,), (2,), (1, 3)]:
        assert_same(Sequences(decoder).forward({0: tokens}, cuts)[0], oracle_logits(oracle, tokens))


@pytest.mark.parametrize("page_size", [1, 16])
def test_rejected_tokens_leave_no_trace(decoder: Decoder, oracle: Any, page_size: int) -> None:
    tokens, rejected = random_tokens(3, 50), random_tokens(4, 9)
    sequences = Sequences(decoder, page_size=page_size)
    sequences.forward({0: torch.cat([tokens[:30], rejected])})
    sequences.truncate(0, 30)
    assert_same(sequences.forward({0: tokens[30:]})[0], oracle_logits(oracle, tokens)[30:])


def test_greedy_tokens_equal_generate_past_every_window(decoder: Decoder, oracle: Any) -> None:
    oracle.generation_config.eos_token_id = None
    for seed, length in [(5, 3 * WINDOW + 1), (6, 3)]:
        prompt = random_tokens(seed, length)
        with torch.inference_mode():
            expected = oracle.generate(
                prompt[None],
                attention_mask=torch.ones_like(prompt[None]),
                max_new_tokens=2 * WINDOW,
                do_sample=False,
                pad_token_id=0,
            )
        tokens = Sequences(decoder).greedy(prompt, 2 * WINDOW)
        assert tokens == expected[0, length:].tolist()
        assert len(set(tokens)) > 2, "the model loops on one token: the test shows nothing"


def test_bfloat16_rounds_where_transformers_does(checkpoint: Path) -> None:
    tokens = random_tokens(8, 40)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16), tokens)
    eager = load_decoder(checkpoint, dtype=torch.bfloat16, execution=Execution.EAGER)
    actual = Sequences(eager).forward({0: tokens})[0]
    torch.testing.assert_close(actual, expected.float(), atol=0.1, rtol=0.05)
    assert (actual == expected.float()).float().mean() > 0.5


def test_the_first_layers_alone_can_be_loaded(checkpoint: Path, decoder: Decoder) -> None:
    seen: list[tuple[int, int]] = []
    shallow = load_decoder(
        checkpoint, dtype=torch.float32, num_layers=2, progress=lambda done, total: seen.append((done, total))
    )
    tokens = random_tokens(9, 20)
    batch = build_batch([BatchRow(np.arange(20), 20)])
    with torch.inference_mode():
        hidden = decoder.run(decoder.embed(tokens.tolist()), batch, decoder.new_kv(20), 0, 2)
        expected = decoder.logits(hidden, range(len(hidden)))
    torch.testing.assert_close(Sequences(shallow).forward({0: tokens})[0], expected, atol=1e-4, rtol=1e-4)
    assert seen == [(1, 2), (2, 2)]


def test_eos_is_what_either_config_names(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, seed=0)
    generation = tmp_path / "generation_config.json"
    assert read_config(tmp_path).eos_token_ids == (EOS,)
    generation.write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert read_config(tmp_path).eos_token_ids == (5, 9, EOS)
    generation.write_text("{}")
    assert read_config(tmp_path).eos_token_ids == (EOS,)
    generation.unlink()
    assert read_config(tmp_path).eos_token_ids == (EOS,)
    change_config(tmp_path, {"eos_token_id": None})
    assert read_config(tmp_path).eos_token_ids == ()


def test_what_a_config_class_takes_for_eos_ends_nothing(tmp_path: Path) -> None:
    """LlamaConfig takes 2, which another vocabulary has an ordinary token at."""
    path = make_checkpoint("llama", tmp_path, seed=0) / "config.json"
    values = json.loads(path.read_text())
    del values["eos_token_id"]
    path.write_text(json.dumps(values))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert read_config(tmp_path).eos_token_ids == (5,)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "linear", "factor": 2.5}, 640),
        ({"rope_type": "default"}, 256),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            256,
        ),
    ],
)
def test_a_scaled_rope_reaches_the_scaled_context(tmp_path: Path, rope: dict[str, Any], positions: int) -> None:
    """As vLLM has it: max_position_embeddings, 256 here, counts what llama3 adds and neither yarn's nor linear's."""
    make_checkpoint("llama", tmp_path, seed=0)
    change_config(tmp_path, {"rope_parameters": {"rope_theta": 1e4} | rope})
    assert read_config(tmp_path).max_positions == positions


def test_the_old_name_of_rope_scaling_counts_too(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path, seed=0) / "config.json"
    values = json.loads(path.read_text())
    del values["rope_parameters"]
    values |= {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    path.write_text(json.dumps(values))
    assert read_config(tmp_path).max_positions == 1024


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_logits_beyond_the_unscaled_context_are_those_of_transformers(tmp_path: Path, execution: Execution) -> None:
    make_checkpoint("llama", tmp_path, seed=7)
    change_config(tmp_path, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}})
    tokens = random_tokens(8, 400)
    decoder = load_decoder(tmp_path, dtype=torch.float32, execution=execution)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), tokens)
    assert_same(Sequences(decoder).forward({0: tokens})[0][256:], expected[256:])


@pytest.mark.parametrize("family", ["gpt2", "phi3", "mixtral", "deepseek_v3", "gemma3", "qwen3_moe", None])
def test_another_family_is_refused_by_name(tmp_path: Path, family: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UnsupportedModel, match=f"{family!r} is not supported") as refusal:
        read_config(tmp_path)
    assert all(name in str(refusal.value) for name in FAMILIES)


LONG_FACTORS = {"long_factor": [1.0] * 6, "short_factor": [1.0] * 6}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | LONG_FACTORS}, "'longrope'"),
        ("qwen2", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "'mrope'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"hidden_act": "xielu"}, "'xielu'"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "auto_map"),
        ("llama", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "'ministral'"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "sliding_window is off"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ],
)
def test_an_option_that_the_layer_lacks_is_refused_by_name(
    tmp_path: Path, family: str, change: dict[str, Any], message: str
) -> None:
    change_config(make_checkpoint(family, tmp_path, seed=0), change)
    with pytest.raises(UnsupportedModel, match=message):
        read_config(tmp_path)


def change_config(directory: Path, change: dict[str, Any]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


class TestWeightFiles:
    """What a directory may hold; on one tiny llama each."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return make_checkpoint("llama", tmp_path, seed=0)

    def load(self, directory: Path) -> Decoder:
        return load_decoder(directory, dtype=torch.float32)

    def rewrite(self, directory: Path, add: dict[str, Tensor], drop: str = "") -> None:
        tensors = load_file(directory / "model.safetensors") | add
        kept = {name: tensor.clone() for name, tensor in tensors.items() if name != drop}
        save_file(kept, directory / "model.safetensors")

    def test_shards_are_joined(self, directory: Path, tmp_path: Path) -> None:
        single = self.load(directory)
        AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "shards", max_shard_size="50kB")
        sharded = self.load(tmp_path / "shards")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        tokens = random_tokens(0, 10)
        assert torch.equal(Sequences(single).forward({0: tokens})[0], Sequences(sharded).forward({0: tokens})[0])

    def test_a_lost_shard_is_named(self, directory: Path, tmp_path: Path) -> None:
        AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "shards", max_shard_size="50kB")
        lost = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
        lost.unlink()
        with pytest.raises(ConfigError, match=lost.name):
            self.load(tmp_path / "shards")

    def test_pickled_weights_are_refused_with_the_remedy(self, directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"\.bin weights.*save_pretrained"):
            self.load(directory)

    def test_no_weights_at_all_are_refused(self, directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"no model\.safetensors"):
            self.load(directory)

    def test_a_missing_tensor_is_named(self, directory: Path) -> None:
        self.rewrite(directory, {}, drop="model.layers.1.mlp.up_proj.weight")
        with pytest.raises(ConfigError, match=r"lacks.*model\.layers\.1\.mlp\.up_proj\.weight"):
            self.load(directory)

    def test_an_unexplained_tensor_is_named(self, directory: Path) -> None:
        self.rewrite(directory, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)})
        with pytest.raises(UnsupportedModel, match=r"model\.layers\.0\.self_attn\.q_proj\.bias"):
            self.load(directory)

    def test_a_wrong_shape_is_named(self, directory: Path) -> None:
        self.rewrite(directory, {"model.norm.weight": torch.zeros(7)})
        with pytest.raises(ConfigError, match=r"model\.norm\.weight.*\(7,\).*\(48,\)"):
            self.load(directory)

    def test_stored_rotary_frequencies_are_harmless(self, directory: Path) -> None:
        self.rewrite(directory, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)})
        self.load(directory)

    def test_a_tied_head_may_be_stored_only_if_it_is_the_embedding(self, directory: Path) -> None:
        change_config(directory, {"tie_word_embeddings": True})
        with pytest.raises(ConfigError, match="ties its embeddings"):
            self.load(directory)
        embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
        self.rewrite(directory, {"lm_head.weight": embedding})
        self.load(directory)

    def test_too_many_layers_are_refused(self, directory: Path) -> None:
        with pytest.raises(ConfigError, match=r"num_layers 5 is not in 1\.\.4"):
            load_decoder(directory, dtype=torch.float32, num_layers=5)

    def test_no_config_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.json does not exist"):
            read_config(tmp_path / "nothing")

    def test_a_broken_config_is_refused(self, directory: Path) -> None:
        change_config(directory, {"num_attention_heads": "seven"})
        with pytest.raises(ConfigError, match="not a valid llama config"):
            read_config(directory)

    def test_a_hub_id_may_name_a_revision_and_is_pinned_to_its_commit(
        self, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commits = {None: "c0ffee", "v2": "beef", "c0ffee": "c0ffee"}
        asked: list[tuple[str, str | None]] = []

        def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append((name, revision))
            snapshot = tmp_path / "snapshots" / commits[revision]
            snapshot.mkdir(parents=True, exist_ok=True)
            (snapshot / "config.json").touch()
            return str(snapshot)

        monkeypatch.setattr(files, "snapshot_download", download)
        assert files.pin_revision("org/model") == "org/model@c0ffee"
        assert files.pin_revision("org/model@v2") == "org/model@beef"
        assert files.pin_revision("org/model@c0ffee") == "org/model@c0ffee"
        assert resolve("org/model@c0ffee").name == "c0ffee"
        assert asked == [("org/model", None), ("org/model", "v2"), ("org/model", "c0ffee"), ("org/model", "c0ffee")]
        assert files.pin_revision(str(directory)) == str(directory)

    def test_a_path_that_is_no_directory_never_reaches_the_hub(self, directory: Path) -> None:
        assert resolve(str(directory)) == directory
        with pytest.raises(ConfigError, match="is not a directory"):
            resolve(str(directory / "absent"))
