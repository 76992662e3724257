"""OpenVINO GenAI in its own environment: reads one JSON command a line, answers with one JSON line each.

    {"op": "open", "name": ..., "target": DIR, "drafter": DIR or null, "properties": {...}, "cache_gb": N}
    {"op": "run", "name": ..., "prompts": [[ids]], "max_tokens": N, "batch": N, "length": N, "temperature": T}

Requests go through the continuous-batching pipeline step by step, because only so the arrival of each token of a
batch can be seen; it is as fast as `generate`. Prefix caching is off, since the prompts repeat.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found,unused-ignore]
import openvino_genai as genai  # type: ignore[import-not-found,unused-ignore]

from bench.peers.worker_loop import answer_commands


class Pipelines:
    def __init__(self) -> None:
        self._open: dict[str, Any] = {}
        self._ids = 0

    def open(self, command: dict[str, Any]) -> dict[str, Any]:
        properties = dict(command["properties"])
        if command["drafter"]:
            properties["draft_model"] = genai.draft_model(command["drafter"], "CPU")
        tokenizer = genai.Tokenizer(command["target"])
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = command["cache_gb"]
        scheduler.max_num_seqs = command["batch"]
        scheduler.enable_prefix_caching = False
        self._open[command["name"]] = genai.ContinuousBatchingPipeline(
            command["target"], tokenizer, scheduler, "CPU", **properties
        )
        return {"version": genai.__version__}

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Keeps `batch` requests in the pipeline until all are done."""
        pipeline, config = self._open[command["name"]], _config(command)
        waiting = [(index, _tensor(prompt)) for index, prompt in enumerate(command["prompts"])]
        outputs: list[dict[str, Any]] = [{"token_ids": [], "arrived": [], "runs": []} for _ in waiting]
        running: dict[int, Any] = {}
        start = time.perf_counter()
        while waiting or running:
            while waiting and len(running) < command["batch"]:
                index, tensor = waiting.pop(0)
                self._ids += 1
                running[index] = pipeline.add_request(self._ids, tensor, config)
            pipeline.step()
            _collect(running, outputs, command["max_tokens"])
        return {"started": start, "outputs": outputs}


def _collect(running: dict[int, Any], outputs: list[dict[str, Any]], max_tokens: int) -> None:
    now = time.perf_counter()
    for index, handle in list(running.items()):
        if handle.can_read():
            new = [token for piece in handle.read().values() for token in piece.generated_ids]
            outputs[index]["token_ids"] += new
            outputs[index]["arrived"] += [now] * len(new)
            outputs[index]["runs"].append(len(new))
        if len(outputs[index]["token_ids"]) >= max_tokens:
            del running[index]


def _config(command: dict[str, Any]) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = command["max_tokens"]
    config.ignore_eos = True
    config.do_sample = command["temperature"] > 0
    if config.do_sample:
        config.temperature, config.top_p, config.rng_seed = command["temperature"], 1.0, 0
    if command["length"]:
        config.num_assistant_tokens = command["length"]
    return config


def _tensor(prompt: list[int]) -> Any:
    return openvino.Tensor(np.array([prompt], dtype=np.int64))


def main() -> None:
    pipelines = Pipelines()
    answer_commands({"open": pipelines.open, "run": pipelines.run})


if __name__ == "__main__":
    main()
