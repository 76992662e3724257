"""Chooses how a checkpoint runs: native kernels where they can be compiled, plain torch elsewhere."""

from __future__ import annotations

import logging
from enum import StrEnum
from functools import cache

import torch

from model.config import DecoderConfig
from model.decoder import Decoder, DecoderWeights, StoredWeights
from model.eager import EagerDecoder
from model.native.compiler import CompilerError
from model.native.decoder import NativeDecoder
from model.native.library import features, library, num_threads
from protocol.errors import ConfigError
from protocol.stats import Runs

NATIVE_DTYPES = (torch.bfloat16, torch.float32)
SLOWER = "steps run in plain torch, several times slower"

logger = logging.getLogger(__name__)


class Execution(StrEnum):
    """How a checkpoint runs. AUTO: NATIVE if possible, else EAGER; see why_not_native for the reason."""

    AUTO = "auto"
    NATIVE = "native"
    EAGER = "eager"


def build_decoder(config: DecoderConfig, weights: StoredWeights, execution: Execution = Execution.AUTO) -> Decoder:
    """A decoder for the weights. Raises ConfigError if NATIVE is requested and not possible."""
    if execution is Execution.EAGER:
        return EagerDecoder(config, DecoderWeights.read(weights))
    unfit = _unfit(weights)
    why = unfit or why_not_native()
    if why is None:
        logger.info("native kernels (%s), %d threads, deterministic", features(), num_threads())
        return NativeDecoder(config, weights)
    if execution is Execution.NATIVE:
        raise ConfigError(f"execution native: {why}; or set execution: auto")
    if unfit is None:
        warn_once(f"{why}; {SLOWER}")
    return EagerDecoder(config, DecoderWeights.read(weights))


def runs(decoder: Decoder, execution: Execution) -> Runs:
    """A description of how a decoder runs. execution: the argument that it was built with."""
    if isinstance(decoder, NativeDecoder):
        return Runs(f"native kernels, {features()}")
    missing = execution is Execution.AUTO and decoder.device.type == "cpu" and decoder.dtype in NATIVE_DTYPES
    return Runs(f"torch, {decoder.device.type}", why_not_native() if missing else None)


@cache
def why_not_native() -> str | None:
    """Why native kernels cannot run on this machine, or None if they can. Tried once per process."""
    try:
        library()
    except CompilerError as error:
        return str(error)
    return None


@cache
def warn_once(message: str) -> None:
    """Logs a message once per process."""
    logger.warning(message)


def _unfit(weights: StoredWeights) -> str | None:
    if weights.device.type != "cpu":
        return f"the native kernels run on a CPU, not on {weights.device}; give this model no GPU"
    if weights.dtype not in NATIVE_DTYPES:
        return f"the native kernels take bf16 and fp32, not {weights.dtype}"
    return None
