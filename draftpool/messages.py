"""What the client says in messages of protocol/inference.proto: an ask in the words of HTTP becomes one, and a response
becomes a delta. api/rpc_bodies.py reads them the other way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from api.seeds import unsigned_seed
from api.unsupported import DROPPED_IN_FUNCTION, DROPPED_IN_MESSAGE, ONLY_IN_MESSAGE, supported
from draftpool.asks import Ask, Json
from draftpool.errors import Refused, ServerFault
from draftpool.values import Acceptance, Delta, FinishReason, Logprobs, TokenLogprob, ToolCallDelta, Usage
from protocol.errors import InvalidRequest
from protocol.logit_rules import LOWEST
from protocol.pb import inference_pb2 as pb

Fields = dict[str, Any]
REASONS: Mapping[int, FinishReason] = MappingProxyType(
    {
        pb.FINISH_REASON_STOP: "stop",
        pb.FINISH_REASON_LENGTH: "length",
        pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
    }
)
_CHAT_FIELDS = pb.ChatRequest.DESCRIPTOR.fields_by_name.keys()


def request_of(ask: Ask) -> pb.GenerateRequest | pb.ChatRequest:
    """Raises InvalidRequest for what no message can say."""
    try:
        fields = _spelled(ask.options)
        if ask.messages is None:
            return pb.GenerateRequest(model=ask.model, **_prompt(ask.prompt), **fields)
        chat = {name: fields.pop(name) for name in fields.keys() & _CHAT_FIELDS}
        options = pb.GenerateRequest(model=ask.model, **_chat_logprobs(fields))
        return pb.ChatRequest(messages=map(_message, ask.messages), options=options, **chat)
    except InvalidRequest:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidRequest(f"an option has a wrong type or is out of range: {error}") from None


def delta_of(response: pb.GenerateResponse) -> Delta:
    """Raises Refused for a finish reason that is unknown."""
    told: Fields = {
        "logprobs": tuple(map(_told, response.logprobs)),
        "prompt_logprobs": tuple(map(_told, response.prompt_logprobs)),
        "token_sources": tuple(response.token_sources),
        "tool_calls": tuple(map(_called, response.tool_calls)),
    }
    ids = tuple(response.token_ids)
    if response.finish_reason == pb.FINISH_REASON_UNSPECIFIED:
        return Delta(response.request_id, response.text, ids, **told)
    if (reason := REASONS.get(response.finish_reason)) is None:
        raise Refused(ServerFault(f"the server ended with a reason that is unknown here: {response.finish_reason}"))
    usage, stats = response.usage, response.stats
    accepted = Acceptance(stats.rounds, stats.drafted, stats.accepted) if stats.drafted else None
    spent = Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    return Delta(response.request_id, response.text, ids, reason, spent, accepted, response.seed, **told)


def _spelled(options: Json) -> Fields:
    """The fields of messages that say what these options do."""
    said = {name: _APART[name](value) if name in _APART else {name: value} for name, value in options.items()}
    if said.get("response_format") and said.get("structured_outputs"):
        raise InvalidRequest("response_format and structured_outputs both shape the answer; send one")
    return {name: value for fields in said.values() for name, value in fields.items()}


def _prompt(prompt: Any) -> Fields:
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": pb.TokenIds(ids=prompt)}


def _chat_logprobs(fields: Fields) -> Fields:
    """A chat says apart whether to tell logprobs and of how many tokens."""
    told, top = fields.pop("logprobs", False), fields.pop("top_logprobs", 0)
    if not isinstance(told, bool) or (top and not told):
        raise InvalidRequest("logprobs of a chat is true or false, and top_logprobs need true", "top_logprobs")
    return fields | ({"logprobs": top} if told else {})


def _speculation(asked: Any) -> Fields:
    if asked == "auto":
        return {}
    if asked in ("off", False):
        return {"speculation": pb.Speculation()}
    return {"speculation": pb.Speculation(depth=asked["depth"], length=asked["length"])}


def _format(asked: Json) -> Fields:
    kind = asked["type"]
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequest("response_format has type text, json_object or json_schema", "response_format")
    if kind == "json_schema":
        return {"json_schema": _text(asked["json_schema"]["schema"])}
    return {"json_object": True} if kind == "json_object" else {}


def _shape(asked: Json) -> Fields:
    ways = [(name, value) for name, value in asked.items() if value]
    if len(ways) != 1 or asked.keys() - _SHAPES.keys():
        raise InvalidRequest("send one of json, json_object, regex, choice and grammar", "structured_outputs")
    ((name, value),) = ways
    return _SHAPES[name](value)


def _choice(asked: Any) -> Fields:
    return {"tool_choice": asked} if isinstance(asked, str) else {"tool_choice_function": asked["function"]["name"]}


def _message(message: Any) -> pb.ChatMessage:
    fields = supported(message, ONLY_IN_MESSAGE, DROPPED_IN_MESSAGE)
    if not isinstance(content := fields.get("content", ""), str):
        fields["content"] = "".join(_part(part) for part in content)
    return pb.ChatMessage(**fields | {"tool_calls": map(_call, fields.get("tool_calls", ()))})


def _part(part: Json) -> str:
    if part["type"] != "text":
        raise InvalidRequest("a part of a message has type text", "messages")
    return str(part["text"])


def _call(call: Json) -> pb.ToolCall:
    function = call["function"]
    return pb.ToolCall(id=call["id"], name=function["name"], arguments=_text(function["arguments"]))


def _tool(tool: Json) -> pb.Tool:
    if tool["type"] != "function":
        raise InvalidRequest("a tool has type function", "tools")
    fields = supported(tool["function"], {}, DROPPED_IN_FUNCTION)
    if "parameters" in fields:
        fields["parameters"] = _text(fields["parameters"])
    return pb.Tool(**fields)


def _text(value: Any) -> str:
    """JSON as text; a text is taken for JSON."""
    return value if isinstance(value, str) else json.dumps(value)


# How messages say an option that they spell in another way. All others have the same name there.
_APART: Mapping[str, Callable[[Any], Fields]] = MappingProxyType(
    {
        "top_k": lambda top_k: {"top_k": 0 if top_k == -1 else top_k},
        "seed": lambda seed: {"seed": unsigned_seed(seed)},
        "stop": lambda stop: {"stop": [stop] if isinstance(stop, str) else stop},
        "logit_bias": lambda bias: {"logit_bias": {int(token): value for token, value in bias.items()}},
        "speculation": _speculation,
        "response_format": _format,
        "structured_outputs": _shape,
        "tools": lambda tools: {"tools": [*map(_tool, tools)]},
        "tool_choice": _choice,
        "chat_template_kwargs": lambda kwargs: {"chat_template_kwargs": _text(kwargs)},
    }
)
_SHAPES: Mapping[str, Callable[[Any], Fields]] = MappingProxyType(
    {
        "json": lambda schema: {"json_schema": _text(schema)},
        "json_object": lambda asked: {"json_object": asked},
        "regex": lambda regex: {"regex": regex},
        "choice": lambda texts: {"choice": pb.Choices(texts=texts)},
        "grammar": lambda lark: {"lark": lark},
    }
)


def _told(place: pb.Logprobs) -> Logprobs:
    return Logprobs(_scored(place.chosen), tuple(map(_scored, place.top)))


def _scored(token: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.spelling, max(token.logprob, LOWEST))


def _called(part: pb.ToolCallDelta) -> ToolCallDelta:
    ident, name = (getattr(part, field) if part.HasField(field) else None for field in ("id", "name"))
    return ToolCallDelta(part.index, ident, name, part.arguments)
