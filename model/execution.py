"""Who runs a checkpoint's layers: our own kernels where they can be compiled, plain torch everywhere else."""

from __future__ import annotations

import logging
from enum import StrEnum

import torch

from model.config import DecoderConfig
from model.decoder import Decoder, DecoderWeights
from model.eager import EagerDecoder
from model.native.compiler import CompilerError
from model.native.decoder import NativeDecoder
from model.native.library import features, num_threads
from protocol.errors import ConfigError

logger = logging.getLogger(__name__)


class Execution(StrEnum):
    """AUTO: NATIVE where it can be had, else EAGER, and the log says why."""

    AUTO = "auto"
    NATIVE = "native"
    EAGER = "eager"


def build_decoder(config: DecoderConfig, weights: DecoderWeights, execution: Execution = Execution.AUTO) -> Decoder:
    """Raises ConfigError when NATIVE is asked for and cannot be had."""
    if execution is Execution.EAGER:
        return EagerDecoder(config, weights)
    try:
        decoder = native_decoder(config, weights)
    except CompilerError as error:
        if execution is Execution.NATIVE:
            raise ConfigError(f"execution native: {error}; install g++ or clang++, or set execution: auto") from None
        logger.warning("%s; steps run in plain torch, several times slower", error)
        return EagerDecoder(config, weights)
    logger.info("native kernels (%s), %d threads, deterministic", features(), num_threads())
    return decoder


def native_decoder(config: DecoderConfig, weights: DecoderWeights) -> NativeDecoder:
    """Raises CompilerError."""
    dtype, device = weights.embedding.dtype, weights.embedding.device
    if device.type != "cpu":
        raise CompilerError(f"the native kernels run on a CPU, not on {device}")
    if dtype not in (torch.bfloat16, torch.float32):
        raise CompilerError(f"the native kernels take bf16 and fp32, not {dtype}")
    return NativeDecoder(config, weights)
