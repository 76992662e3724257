"""The agent of two_tools.py in LangChain: look up two prices and add them, on a model that DraftPool serves.

    pip install langchain langchain-openai
    python docs/examples/two_tools_langchain.py http://127.0.0.1:8000/v1 MODEL --tool-choice required

The tools are strict: calls are shaped, whoever decides to call. A server with keys takes OPENAI_API_KEY. Nothing is
sent anywhere else, unless LangSmith's own variables ask for it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI

PRICES = {"teapot": 18.25, "kettle": 31.5}
TASK = "Get the price of the teapot. Then get the price of the kettle. Then add the two prices."
INSTRUCTIONS = (
    "Always call tools inside <tool_call></tool_call> tags, one call at a time."  # small Qwen models forget them
)


def tools(tool_choice: str) -> list[BaseTool]:
    """`required` holds for all turns, so the sum has to end the task."""

    @tool
    def price_of(item: str) -> float:
        """The price of one item, by its name."""
        return PRICES[item.lower()]

    @tool(return_direct=tool_choice == "required")
    def add(a: float, b: float) -> float:
        """The sum of two numbers."""
        return a + b

    return [price_of, add]


def shopkeeper(model: ChatOpenAI, tool_choice: str) -> Any:
    """The agent."""

    @wrap_model_call
    def chooses(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
        settings = {"parallel_tool_calls": False, "strict": True}
        return handler(request.override(tool_choice=tool_choice, model_settings=settings))

    return create_agent(model, tools(tool_choice), system_prompt=INSTRUCTIONS, middleware=[chooses])


def told(message: Any) -> str:
    """A line of the transcript."""
    if isinstance(message, AIMessage) and message.tool_calls:
        return "\n".join(f"calls {call['name']} {call['args']}" for call in message.tool_calls)
    return f"{'says' if isinstance(message, AIMessage) else 'gets'} {message.text}"


def main(url: str, name: str, through: str, tool_choice: str) -> str:
    """Prints what the agent does, as it does it, and returns how it ends."""
    key = os.environ.get("OPENAI_API_KEY", "none")
    model = ChatOpenAI(
        base_url=url,
        api_key=key,
        model=name,
        temperature=0,
        max_tokens=256,
        streaming=True,
        use_responses_api=through == "responses",
    )
    last = ""
    agent = shopkeeper(model, tool_choice)
    for update in agent.stream({"messages": [("user", TASK)]}, {"recursion_limit": 16}, stream_mode="updates"):
        for step in update.values():
            for message in step["messages"]:
                last = message.text
                sys.stdout.write(f"{told(message)}\n")
    return last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An agent with two tools on a served model.")
    parser.add_argument("url", help="of the API, such as http://127.0.0.1:8000/v1")
    parser.add_argument("model", help="a name of GET /v1/models")
    parser.add_argument("--through", choices=["chat", "responses"], default="chat", help="the route")
    parser.add_argument("--tool-choice", choices=["auto", "required"], default="auto", help="who decides to call")
    given = parser.parse_args()
    answer = main(given.url, given.model, given.through, given.tool_choice)
    sys.stdout.write(f"ends with {answer}\n")
