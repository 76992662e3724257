"""How a call over gRPC ends that gets no answer.

Ray Serve's proxy reads the exception with pickle, and so imports its module when the first call is refused: here, where
that takes no time. With the module of the calls it stood still for a second, and everybody's requests with it.
"""

from __future__ import annotations

from grpc import StatusCode


class CallRefused(Exception):
    """Ends a call whose status is already set on the context. Its text is shown to the caller."""

    def __init__(self, message: str = "", code: StatusCode = StatusCode.UNKNOWN) -> None:
        super().__init__(message)
        self.code = code
