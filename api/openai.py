"""OpenAI's request bodies: the supported fields, their types and defaults. `unsupported` handles all other fields.

null means the default everywhere, as in OpenAI's schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from api import unsupported
from api.generation_body import MAX_CHOICES, GenerationBody, Strings, TokenIds, Whole
from api.shapes import Body, JsonObject
from api.tools import NamedChoice, Tool, ToolCall, ToolChoice, Tools
from protocol.errors import InvalidRequest
from protocol.logit_rules import check_top

MAX_PROMPTS = 64


def _parts(content: Any) -> Any:
    """A plain string as one text part, so that errors in parts name their place."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class CompletionRequest(GenerationBody):
    only = unsupported.ONLY_IN_COMPLETIONS
    default_max_tokens: ClassVar[int | None] = 16  # as OpenAI's

    echo: bool = False
    prompt: str | Strings | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    add_special_tokens: bool = True
    logprobs: Whole | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> Sequence[str | Sequence[int]]:
        """Each for `n` choices. A list of integers is one prompt. Raises InvalidRequest for none or too many."""
        is_single = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        prompts: list[Any] = [self.prompt] if is_single else list(self.prompt)
        if not 0 < len(prompts) <= MAX_PROMPTS:
            raise InvalidRequest(f"{len(prompts)} prompts in one request; send 1 to {MAX_PROMPTS}", "prompt")
        if len(prompts) * self.n > MAX_CHOICES:
            raise InvalidRequest(
                f"n {self.n} for {len(prompts)} prompts are more than {MAX_CHOICES} choices; send fewer", "n"
            )
        return prompts

    def echoes(self) -> list[str | tuple[int, ...]]:
        """What the text of each prompt's choices begins with: nothing, or the prompt as it was sent."""
        prompts = self.prompts()
        if not self.echo:
            return [""] * len(prompts)
        return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


class TextPart(Body):
    dropped = unsupported.DROPPED_IN_MESSAGE

    type: Literal["text"]
    text: str


class Message(Body):
    only = unsupported.ONLY_IN_MESSAGE
    dropped = unsupported.DROPPED_IN_MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Annotated[list[TextPart], Field(fail_fast=True)], BeforeValidator(_parts)] = Field(
        default_factory=list
    )
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] = Field(default_factory=list)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest(f"tool_calls are the assistant's, not the {self.role}'s; leave them out", "tool_calls")
        if (self.tool_call_id is not None) is not (self.role == "tool"):
            raise InvalidRequest(
                "tool_call_id belongs to messages of role tool, and each of them has one", "tool_call_id"
            )
        return self

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationBody):
    """add_generation_prompt: None means unless the last message is to be continued."""

    only = unsupported.ONLY_IN_CHAT
    prompt_field = "messages"

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    add_special_tokens: Literal[False] = False  # the template writes them
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: Whole = 0

    @model_validator(mode="after")
    def _check_ending(self) -> ChatCompletionRequest:
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message goes on with the last message, add_generation_prompt begins another; send one",
                "continue_final_message",
            )
        if self.continue_final_message and self.messages[-1].tool_calls:
            raise InvalidRequest("a message with tool_calls cannot be continued", "continue_final_message")
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> ChatCompletionRequest:
        choice = self.tool_choice
        if self.must_call and not self.tools:
            raise InvalidRequest("a call is asked for and there are no tools; send some", "tool_choice")
        if isinstance(choice, NamedChoice) and not self.callable:
            raise InvalidRequest(f"there is no function {choice.function.name!r} among the tools", "tool_choice")
        if self.must_call and super().is_shaped and self.wanted is None:
            raise InvalidRequest(
                "structured_outputs shape the answer, and tool_choice asks for a call; send one", "tool_choice"
            )
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatCompletionRequest:
        check_top(self.top_logprobs, "top_logprobs")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(f"top_logprobs {self.top_logprobs} need logprobs: true", "top_logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def offered(self) -> Sequence[Tool]:
        """The tools that the model is told of. It cannot call what it does not know."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        return self.tool_choice not in ("none", "auto")

    @property
    def callable(self) -> Mapping[int, Tool]:
        """The tools that may be called, by their place."""
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedChoice) else None
        return {place: tool for place, tool in enumerate(self.offered) if named in (None, tool.function.name)}

    @property
    def is_shaped(self) -> bool:
        return self.must_call or super().is_shaped or any(tool.function.strict for tool in self.offered)
