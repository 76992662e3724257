"""llama.cpp in its own environment: reads one JSON command a line, answers with one JSON line each.

    {"op": "open", "name": ..., "file": GGUF, "threads": N, "batch": N, "context": N}
    {"op": "run", "name": ..., "prompts": [[ids]], "max_tokens": N, "batch": N, "temperature": T}

Requests go to its own server over loopback and are streamed, because only so the arrival of each token can be seen. No
prompt is reused, since they repeat.
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


class Servers:
    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def open(self, command: dict[str, Any]) -> dict[str, Any]:
        params = xllamacpp.CommonParams()
        params.model.path = command["file"]
        params.n_ctx = command["context"] * command["batch"]
        params.n_parallel = command["batch"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = command["threads"]
        params.cache_ram_mib = 0
        self._open[command["name"]] = xllamacpp.Server(params)
        return {"version": xllamacpp.__version__}

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """`batch` requests at once, until all are done."""
        server = self._open[command["name"]]
        start = time.perf_counter()
        with ThreadPoolExecutor(command["batch"]) as threads:
            outputs = list(threads.map(lambda prompt: _complete(server, prompt, command), command["prompts"]))
        return {"started": start, "outputs": outputs}


def _complete(server: Any, prompt: list[int], command: dict[str, Any]) -> dict[str, Any]:
    output: dict[str, Any] = {"token_ids": [], "arrived": [], "runs": []}
    body = {"prompt": prompt, "n_predict": command["max_tokens"], "temperature": command["temperature"]}
    body |= {"samplers": ["temperature"], "seed": 0, "ignore_eos": True, "cache_prompt": False}
    body |= {"stream": True, "return_tokens": True}
    request = Request(f"{server.listening_address}/completion", json.dumps(body).encode(), HEADERS)
    with urlopen(request) as events:
        for line in events:
            new = json.loads(line[len(EVENT) :]).get("tokens", []) if line.startswith(EVENT) else []
            output["token_ids"] += new
            output["arrived"] += [time.perf_counter()] * len(new)
            output["runs"] += [len(new)] if new else []
    return output


def main() -> None:
    servers = Servers()
    answer_commands({"open": servers.open, "run": servers.run})


if __name__ == "__main__":
    main()
