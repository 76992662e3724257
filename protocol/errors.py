"""The error tree.

    DraftPoolError
    |-- UserError (ValueError)      the caller can act on it: names the value and the remedy
    |   |-- InvalidRequest          400  a parameter is out of range or malformed
    |   |   |-- PromptTooLong       400
    |   |   |-- BodyTooLarge        413
    |   |   `-- HeadTooLarge        431  URL and headers
    |   |-- Unauthenticated         401
    |   |-- UnknownModel            404
    |   |-- ConfigError             refused at start-up
    |   `-- UnsupportedModel        refused at start-up
    |-- TryLater                    the caller can do nothing but come again
    |   |-- QueueFull               429  too much is asked at once
    |   `-- NotReady                503  models are still loading, or shutting down
    |-- TimedOut                    408  the request's time is over
    |-- Aborted                     499  somebody ended the request by its id
    |-- ModelFault                  500  the model gives no token: its scores are not numbers
    `-- DraftUnavailable            never reaches a caller: the target decodes without a draft

`api/errors.py` maps each class once to an HTTP status, an OpenAI error type and a gRPC code.
"""

from __future__ import annotations


class DraftPoolError(Exception):
    """Base of every error that DraftPool raises on purpose."""


class UserError(DraftPoolError, ValueError):
    """The caller can mend it; the message names the value and the remedy."""


class InvalidRequest(UserError):
    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class PromptTooLong(InvalidRequest):
    pass


class BodyTooLarge(InvalidRequest):
    pass


class HeadTooLarge(InvalidRequest):
    pass


class Unauthenticated(UserError):
    pass


class UnknownModel(UserError):
    pass


class ConfigError(UserError):
    pass


class UnsupportedModel(UserError):
    pass


class TryLater(DraftPoolError):
    """retry_after_s: seconds until it is worth to come again; None: not known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class QueueFull(TryLater):
    pass


class NotReady(TryLater):
    pass


class TimedOut(DraftPoolError):
    pass


class Aborted(DraftPoolError):
    pass


class ModelFault(DraftPoolError):
    pass


class DraftUnavailable(DraftPoolError):
    pass
