"""Rows of a rollout that have a say in their picks: the kernels call back, place by place, for these rows only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.rollout import Rollout

_ASK = ctypes.CFUNCTYPE(c_int, c_int64, c_int64, c_int64, c_void_p)


class Asked:
    """What rows make of the logits and picks of one rollout. To be kept until that returns.

    A row must not call the kernels: the rollout has all of their threads. Once a row has raised, none is asked again.
    """

    def __init__(self, rows: Sequence[Rollout], drafts: Sequence[npt.NDArray[np.int64]], width: int) -> None:
        """drafts: of each row, where its tokens are written. width: of logits."""
        self._rows, self._drafts, self._width = rows, drafts, width
        self._error: Exception | None = None
        self._call = _ASK(self._ask)

    @property
    def address(self) -> int:
        """Of the function that the kernels call."""
        return ctypes.cast(self._call, c_void_p).value or 0

    def check(self) -> None:
        """Raises what a row raised; no exception passes through the kernels. Ends what is asked."""
        del self._call  # it holds this, with the rows' texts, until garbage is collected
        if self._error is not None:
            raise self._error

    def _ask(self, row: int, count: int, token: int, logits: int) -> int:
        if self._error is not None:
            return False
        try:
            line = torch.frombuffer((c_float * self._width).from_address(logits), dtype=torch.float32)[None]
            return self._changes(self._rows[row], self._drafts[row][:count].tolist(), token, line)
        except Exception as error:
            self._error = error
            return False

    def _changes(self, row: Rollout, draft: list[int], token: int, logits: Tensor) -> bool:
        """Whether another pick is due. token: the pick, or -1 before there is one."""
        if token < 0:
            if row.ruled:
                row.ruled(draft, logits)
            return False
        columns = row.banned(draft, token) if row.banned else None
        if columns is not None:
            logits.masked_fill_(columns, -float("inf"))
        return columns is not None
