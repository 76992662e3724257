"""An agent of the OpenAI Agents SDK with two tools, on a model that DraftPool serves: look up two prices and add them.

    pip install openai-agents
    python docs/examples/two_tools.py http://127.0.0.1:8000/v1 MODEL --through responses --tool-choice required

With `auto` the model chooses when to call and ends with words; its calls are shaped, since function_tool makes strict
tools. With `required` every turn has to call, by a grammar, and the task ends with what `add` gives: so also a model
that seldom calls by itself can do it. A server with keys takes OPENAI_API_KEY. Nothing is sent anywhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from agents import (
    Agent,
    ItemHelpers,
    MessageOutputItem,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    StopAtTools,
    ToolCallItem,
    ToolCallOutputItem,
    function_tool,
    set_tracing_disabled,
)
from agents.items import RunItem
from openai import AsyncOpenAI

PRICES = {"teapot": 18.25, "kettle": 31.5}
TASK = "Get the price of the teapot. Then get the price of the kettle. Then add the two prices."
INSTRUCTIONS = (
    "Always call tools inside <tool_call></tool_call> tags, one call at a time."  # small Qwen models forget them
)


@function_tool
def price_of(item: str) -> float:
    """The price of one item, by its name."""
    return PRICES[item.lower()]


@function_tool
def add(a: float, b: float) -> float:
    """The sum of two numbers."""
    return a + b


def shopkeeper(model: Model, tool_choice: str) -> Agent[None]:
    """The agent. `required` holds for all turns, so the sum has to end the task."""
    return Agent(
        name="shopkeeper",
        instructions=INSTRUCTIONS,
        model=model,
        model_settings=ModelSettings(temperature=0, max_tokens=256, tool_choice=tool_choice, parallel_tool_calls=False),
        tools=[price_of, add],
        reset_tool_choice=False,
        tool_use_behavior=StopAtTools(stop_at_tool_names=["add"]) if tool_choice == "required" else "run_llm_again",
    )


def told(item: RunItem) -> str:
    """A line of the transcript."""
    if isinstance(item, ToolCallItem):
        return f"calls {getattr(item.raw_item, 'name', '?')} {getattr(item.raw_item, 'arguments', '')}"
    if isinstance(item, ToolCallOutputItem):
        return f"gets {item.output}"
    if isinstance(item, MessageOutputItem):
        return f"says {ItemHelpers.text_message_output(item)}"
    return item.type


async def main(url: str, name: str, through: str, tool_choice: str) -> str:
    """Prints what the agent does, as it does it, and returns how it ends."""
    set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none")) as client:
        kind = OpenAIResponsesModel if through == "responses" else OpenAIChatCompletionsModel
        agent = shopkeeper(kind(model=name, openai_client=client), tool_choice)
        run = Runner.run_streamed(agent, TASK, max_turns=8)
        async for event in run.stream_events():
            if event.type == "run_item_stream_event":
                sys.stdout.write(f"{told(event.item)}\n")
        return str(run.final_output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An agent with two tools on a served model.")
    parser.add_argument("url", help="of the API, such as http://127.0.0.1:8000/v1")
    parser.add_argument("model", help="a name of GET /v1/models")
    parser.add_argument("--through", choices=["chat", "responses"], default="chat", help="the route")
    parser.add_argument("--tool-choice", choices=["auto", "required"], default="auto", help="who decides to call")
    given = parser.parse_args()
    answer = asyncio.run(main(given.url, given.model, given.through, given.tool_choice))
    sys.stdout.write(f"ends with {answer}\n")
