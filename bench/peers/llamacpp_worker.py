"""llama.cpp in its own environment: reads one JSON command a line, answers with one JSON line each.

    {"op": "version"}
    {"op": "run", SERVER, "prompts": [[ids]], "max_tokens": N, "batch": N, "temperature": T}
    {"op": "judge", SERVER, "window": [ids]}
    {"op": "tokenize", SERVER, "text": ...}

SERVER is "mode", "length" (0: without speculation), "ngram", "file", "draft" (a file or null), "threads", "slots" and
"context". It is opened at its first use. Requests go to it over loopback and are streamed, because only so the
arrival of each token can be seen. No prompt of a run is reused, since they repeat.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

import xllamacpp  # type: ignore[import-not-found,unused-ignore]

from bench.peers.worker_loop import answer_commands

EVENT, HEADERS = b"data: ", {"Content-Type": "application/json"}
CERTAIN = 1e6  # a bias beyond all logits


class Servers:
    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Any] = {}

    def version(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"version": xllamacpp.__version__}

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """`batch` requests at once, until all are done."""
        server = self._server(command)
        start = time.perf_counter()
        with ThreadPoolExecutor(command["batch"]) as threads:
            outputs = list(threads.map(lambda prompt: _complete(server, prompt, command), command["prompts"]))
        return {"started": start, "outputs": outputs}

    def judge(self, command: dict[str, Any]) -> dict[str, Any]:
        """A token a request, the rest from the cache: the server tells probabilities of what it writes only."""
        server, window = self._server(command), command["window"]
        return {"log_probabilities": [_judge(server, window[:end], window[end]) for end in range(1, len(window))]}

    def tokenize(self, command: dict[str, Any]) -> dict[str, Any]:
        body = {"content": command["text"], "add_special": True, "parse_special": True}
        with _asked(self._server(command), "tokenize", body) as answer:
            return {"token_ids": json.load(answer)["tokens"]}

    def _server(self, command: dict[str, Any]) -> Any:
        key = command["mode"], command["length"]
        if key not in self._open:
            params = xllamacpp.CommonParams()
            params.model.path = command["file"]
            params.n_ctx = command["context"] * command["slots"]
            params.n_parallel = command["slots"]
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = command["threads"]
            params.cache_ram_mib = 0
            if command["length"]:
                _speculate(params.speculative, command)
            self._open[key] = xllamacpp.Server(params)
        return self._open[key]


def _speculate(speculative: Any, command: dict[str, Any]) -> None:
    """With at most `length` tokens a draft; all else is llama.cpp's default."""
    types, draft = xllamacpp.common_speculative_type, command["draft"]
    if draft is None:
        speculative.types = [types.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = command["ngram"], command["length"]
    else:
        speculative.types = [types.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        own = speculative.draft
        own.mparams.path, own.n_max = draft, command["length"]
        own.cpuparams.n_threads = own.cpuparams_batch.n_threads = command["threads"]


def _complete(server: Any, prompt: list[int], command: dict[str, Any]) -> dict[str, Any]:
    """runs: sizes of the passes. Tokens come one by one; beside each stands how many were accepted so far."""
    output: dict[str, Any] = {"token_ids": [], "arrived": [], "runs": [], "drafted": 0}
    body = {"prompt": prompt, "n_predict": command["max_tokens"], "temperature": command["temperature"]}
    body |= {"samplers": ["temperature"], "seed": 0, "ignore_eos": True, "cache_prompt": False}
    body |= {"stream": True, "return_tokens": True, "timings_per_token": command["length"] > 0}
    accepted = left = 0  # left: tokens of the pass that are still to come
    with _asked(server, "completion", body) as events:
        for line in events:
            event = json.loads(line[len(EVENT) :]) if line.startswith(EVENT) else {}
            new, told = event.get("tokens", []), event.get("timings", {})
            output["token_ids"] += new
            output["arrived"] += [time.perf_counter()] * len(new)
            if new and left == 0:
                left, accepted = 1 + told.get("draft_n_accepted", 0) - accepted, told.get("draft_n_accepted", 0)
                output["runs"].append(0)
            if new:
                left, output["runs"][-1] = left - len(new), output["runs"][-1] + len(new)
            output["drafted"] = told.get("draft_n", output["drafted"])
    return output


def _judge(server: Any, context: list[int], token: int) -> float:
    """The log-probability of a token: what it is told of the token that it has to write, before any bias."""
    body = {"prompt": context, "n_predict": 1, "temperature": 0.0, "samplers": [], "cache_prompt": True}
    body |= {"n_probs": 1, "logit_bias": [[token, CERTAIN]]}
    with _asked(server, "completion", body) as answer:
        (told,) = json.load(answer)["completion_probabilities"]
    if told["id"] != token:
        raise RuntimeError(f"it wrote {told['id']} in place of {token}")
    return float(told["logprob"])


def _asked(server: Any, path: str, body: dict[str, Any]) -> Any:
    return urlopen(Request(f"{server.listening_address}/{path}", json.dumps(body).encode(), HEADERS))


def main() -> None:
    servers = Servers()
    own = (servers.version, servers.run, servers.judge, servers.tokenize)
    answer_commands({operation.__name__: operation for operation in own})


if __name__ == "__main__":
    main()
