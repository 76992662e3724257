"""The Python client: `from draftpool import Client`. It imports none of the server's heavy libraries."""

from draftpool.async_client import AsyncClient
from draftpool.client import Client
from draftpool.errors import ConnectionLost, ServerFault
from draftpool.retries import Retries
from draftpool.values import Acceptance, Completion, Delta, Message, Model, Options, Usage
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
    "Client",
    "Completion",
    "ConnectionLost",
    "Delta",
    "DraftPoolError",
    "InvalidRequest",
    "Message",
    "Model",
    "ModelFault",
    "NotReady",
    "Options",
    "PromptTooLong",
    "QueueFull",
    "Retries",
    "ServerFault",
    "Speculation",
    "TimedOut",
    "UnknownModel",
    "Usage",
    "UserError",
]
