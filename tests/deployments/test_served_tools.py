"""Tools on a real checkpoint, served, with its own file as the drafter: OpenAI's client, and two agents as programs.

DRAFTPOOL_GGUF names the folder with the checkpoint. DRAFTPOOL_AGENTS_PYTHON and DRAFTPOOL_LANGCHAIN_PYTHON name Pythons
that have `openai-agents`, and `langchain` with `langchain-openai`, where the tests' own does not. What is not there is
skipped, and says so.
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
LAYERS = 28
PATIENT_S = 600.0  # two cores may be shared
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
    path = str(Path(folder) / FILE)
    speculation = {"policy": "fixed", "depth": LAYERS, "length": 4}
    target = {"name": MODEL, "path": path, "weights": "stored", "max_batch": 4, "page_size": 64, "kv_mb": 256}
    values: dict[str, Any] = {
        "placement": "colocated",
        "targets": [target | {"max_model_len": 4096, "speculation": speculation}],
        "pool": {"path": path, "weights": "stored"},
        "http": {"port": ray_head.http_port},
        "access": {"open": True},
    }
    config = AppConfig.model_validate(values)
    with cluster.running(config, address=ray_head.address):
        served = Served(config, ray_head.url)
        served.client = served.client.with_options(timeout=PATIENT_S)
        yield served
        served.client.close()


def python_with(package: str, variable: str) -> str:
    """An interpreter with an agent framework."""
    named = os.environ.get(variable, sys.executable)
    if subprocess.run([named, "-P", "-c", f"import {package}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not installed; {variable} may name a Python that has it")
    return named


def chat(app: Served, tool_choice: Any, question: str = QUESTION, **settings: Any) -> list[Called]:
    """The calls of a chat, whole and streamed, which ends with them."""
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        "tools": [{"type": "function", "function": function} for function in FUNCTIONS],
        "tool_choice": tool_choice,
        "max_tokens": 96,
    }
    asked |= {"temperature": 0} | settings
    whole = app.client.chat.completions.create(**asked).choices[0]
    with app.client.chat.completions.stream(**asked) as stream:
        streamed = [*stream] and stream.get_final_completion().choices[0]
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"  # and not "length"
    return [
        [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
        for choice in (whole, streamed)
    ]


def response(app: Served, tool_choice: Any) -> list[Called]:
    """The calls of a response, whole and streamed, which ends with them."""
    asked: Any = {
        "model": MODEL,
        "instructions": SYSTEM,
        "input": QUESTION,
        "tools": [{"type": "function"} | function for function in FUNCTIONS],
        "tool_choice": tool_choice,
        "temperature": 0,
        "max_output_tokens": 96,
    }
    whole = app.client.responses.create(**asked)
    with app.client.responses.stream(**asked) as stream:
        streamed = [*stream] and stream.get_final_response()
    assert whole.status == streamed.status == "completed"
    return [
        [(item.name, json.loads(item.arguments)) for item in answer.output if item.type == "function_call"]
        for answer in (whole, streamed)
    ]


@pytest.mark.parametrize("ask", [chat, response])
@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_the_model_calls_the_tool_that_the_question_needs(app: Served, ask: Any, tool_choice: str) -> None:
    whole, streamed = ask(app, tool_choice)
    assert whole == streamed == [("price_of", {"item": "teapot"})]


def test_the_model_makes_as_many_calls_as_the_question_needs(app: Served) -> None:
    whole, streamed = chat(app, "required", "What cost the teapot and the kettle? Call for both.")
    assert whole == streamed == [("price_of", {"item": "teapot"}), ("price_of", {"item": "kettle"})]


@pytest.mark.parametrize(
    ("ask", "named"),
    [(chat, {"type": "function", "function": {"name": "add"}}), (response, {"type": "function", "name": "add"})],
)
def test_a_named_function_is_called_also_where_the_question_needs_another(app: Served, ask: Any, named: Any) -> None:
    whole, streamed = ask(app, named)
    assert whole == streamed
    ((name, arguments),) = whole
    assert (name, arguments.keys()) == ("add", {"a", "b"})
    assert all(isinstance(number, int | float) for number in arguments.values())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_calls_are_the_same_with_drafts_and_without(app: Served, temperature: float) -> None:
    before = app.target(MODEL, "stats")["num_proposed"]
    how: Any = {"temperature": temperature, "seed": 3}
    named = {"type": "function", "function": {"name": "add"}}
    drafted = chat(app, named, **how)
    after = app.target(MODEL, "stats")["num_proposed"]
    assert chat(app, named, extra_body={"speculation": "off"}, **how) == drafted
    assert after > before
    assert app.target(MODEL, "stats")["num_proposed"] == after


@pytest.mark.parametrize("through", ["chat", "responses"])
@pytest.mark.parametrize(
    ("example", "package", "variable"),
    [
        ("two_tools.py", "agents", "DRAFTPOOL_AGENTS_PYTHON"),
        ("two_tools_langchain.py", "langchain_openai", "DRAFTPOOL_LANGCHAIN_PYTHON"),
    ],
)
def test_an_agent_does_a_task_with_two_tools(
    app: Served, through: str, example: str, package: str, variable: str
) -> None:
    command = [python_with(package, variable), f"docs/examples/{example}", f"{app.url}/v1", MODEL]
    command += ["--through", through, "--tool-choice", "required"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("calls price_of") >= 2
    assert "calls add" in done.stdout
    assert done.stdout.endswith("ends with 49.75\n")
