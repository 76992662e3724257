"""Tools on a real checkpoint, served: OpenAI's client, and docs/examples/two_tools.py as a program of its own.

DRAFTPOOL_GGUF names the folder with the checkpoint. DRAFTPOOL_AGENTS_PYTHON names a Python that has `openai-agents`,
where the tests' own does not. Without either the tests are skipped and say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import cluster
from deployments.config import AppConfig
from tests.deployments.head import Head
from tests.deployments.served import Served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
FILE = "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf"
MODEL = "qwen"
SYSTEM = "Always call tools inside <tool_call></tool_call> tags, one call at a time."  # else this model fences them
QUESTION = "Get the price of the teapot."
PRICE_OF = {
    "name": "price_of",
    "description": "The price of one item.",
    "parameters": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]},
}
NUMBERS = {"a": {"type": "number"}, "b": {"type": "number"}}
ADD = {
    "name": "add",
    "description": "The sum of two numbers.",
    "parameters": {"type": "object", "properties": NUMBERS, "required": ["a", "b"], "additionalProperties": False},
}
FUNCTIONS: Any = (PRICE_OF, ADD)
Called = list[tuple[str, Any]]


@pytest.fixture(scope="module")
def app(ray_head: Head) -> Iterator[Served]:
    folder = os.environ.get("DRAFTPOOL_GGUF")
    if not folder or not (Path(folder) / FILE).is_file():
        pytest.skip(f"DRAFTPOOL_GGUF names no folder with {FILE}")
    target = {"name": MODEL, "path": str(Path(folder) / FILE), "weights": "stored", "max_batch": 4, "page_size": 64}
    values: dict[str, Any] = {
        "targets": [target | {"kv_mb": 256, "max_model_len": 4096}],
        "http": {"port": ray_head.http_port},
        "access": {"open": True},
    }
    config = AppConfig.model_validate(values)
    with cluster.running(config, address=ray_head.address):
        served = Served(config, ray_head.url)
        yield served
        served.client.close()


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter with the agent framework."""
    named = os.environ.get("DRAFTPOOL_AGENTS_PYTHON", sys.executable)
    if subprocess.run([named, "-P", "-c", "import agents"], capture_output=True, check=False).returncode:
        pytest.skip("openai-agents is not installed; DRAFTPOOL_AGENTS_PYTHON may name a Python that has it")
    return named


def chat(app: Served, tool_choice: Any) -> list[Called]:
    """The calls of a chat, whole and streamed."""
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
        "tools": [{"type": "function", "function": function} for function in FUNCTIONS],
        "tool_choice": tool_choice,
        "parallel_tool_calls": False,  # else this model goes on calling until it is cut off
        "temperature": 0,
        "max_tokens": 128,
    }
    whole = app.client.chat.completions.create(**asked).choices[0]
    with app.client.chat.completions.stream(**asked) as stream:
        streamed = [*stream] and stream.get_final_completion().choices[0]
    return [
        [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
        for choice in (whole, streamed)
    ]


def response(app: Served, tool_choice: Any) -> list[Called]:
    """The calls of a response, whole and streamed."""
    asked: Any = {
        "model": MODEL,
        "instructions": SYSTEM,
        "input": QUESTION,
        "tools": [{"type": "function"} | function for function in FUNCTIONS],
        "tool_choice": tool_choice,
        "parallel_tool_calls": False,  # else this model goes on calling until it is cut off
        "temperature": 0,
        "max_output_tokens": 128,
    }
    whole = app.client.responses.create(**asked)
    with app.client.responses.stream(**asked) as stream:
        streamed = [*stream] and stream.get_final_response()
    return [
        [(item.name, json.loads(item.arguments)) for item in answer.output if item.type == "function_call"]
        for answer in (whole, streamed)
    ]


@pytest.mark.parametrize("ask", [chat, response])
@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_the_model_calls_the_tool_that_the_question_needs(app: Served, ask: Any, tool_choice: str) -> None:
    whole, streamed = ask(app, tool_choice)
    assert whole == streamed
    assert whole[0] == ("price_of", {"item": "teapot"})


@pytest.mark.parametrize(
    ("ask", "named"),
    [(chat, {"type": "function", "function": {"name": "add"}}), (response, {"type": "function", "name": "add"})],
)
def test_a_named_function_is_called_also_where_the_question_needs_another(app: Served, ask: Any, named: Any) -> None:
    whole, streamed = ask(app, named)
    assert whole == streamed
    name, arguments = whole[0]
    assert (name, arguments.keys()) == ("add", {"a", "b"})
    assert all(isinstance(number, int | float) for number in arguments.values())


@pytest.mark.parametrize("through", ["chat", "responses"])
def test_an_agent_does_a_task_with_two_tools(app: Served, python: str, through: str) -> None:
    command = [python, "docs/examples/two_tools.py", f"{app.url}/v1", MODEL]
    command += ["--through", through, "--tool-choice", "required"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("calls price_of") >= 2
    assert "calls add" in done.stdout
    assert done.stdout.endswith("ends with 49.75\n")
