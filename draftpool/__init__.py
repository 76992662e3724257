"""The Python client: `from draftpool import Client`. It imports none of the server's heavy libraries."""

from draftpool.asks import ChatOptions, CompletionOptions, Message
from draftpool.async_client import AsyncClient
from draftpool.client import Client
from draftpool.errors import ConnectionLost, ServerFault
from draftpool.retries import Retries
from draftpool.values import (
    Acceptance,
    Completion,
    Delta,
    Logprobs,
    Model,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
    completion_of,
)
from protocol.errors import (
    Aborted,
    DraftPoolError,
    InvalidRequest,
    ModelFault,
    NotReady,
    PromptTooLong,
    QueueFull,
    TimedOut,
    UnknownModel,
    UserError,
)
from protocol.plan import Speculation

__all__ = [
    "Aborted",
    "Acceptance",
    "AsyncClient",
    "ChatOptions",
    "Client",
    "Completion",
    "CompletionOptions",
    "ConnectionLost",
    "Delta",
    "DraftPoolError",
    "InvalidRequest",
    "Logprobs",
    "Message",
    "Model",
    "ModelFault",
    "NotReady",
    "PromptTooLong",
    "QueueFull",
    "Retries",
    "ServerFault",
    "Speculation",
    "TimedOut",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "UnknownModel",
    "Usage",
    "UserError",
    "completion_of",
]
