"""What llama.cpp's converter changes in a HF checkpoint: names, the order of rows, and an offset of norms."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from model.gguf.header import GgufHeader

Order = npt.NDArray[np.intp]
ROPE_FREQUENCIES = "rope_freqs.weight"
_ENDS = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
)
_LAYER = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_GEMMA_LAYER = MappingProxyType(
    _LAYER
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)


class Conversion:
    """The changes of one family, both ways. Llama's query and key projections have the two halves of each head
    interleaved; Gemma's norms have one added.
    """

    def __init__(self, header: GgufHeader) -> None:
        architecture = header.metadata.get("general.architecture")
        is_gemma = str(architecture).startswith("gemma")
        self._layer: Mapping[str, str] = _GEMMA_LAYER if is_gemma else _LAYER
        self._part_of = {hf: own for own, hf in self._layer.items()}
        self._norm_offset = 1.0 if is_gemma else 0.0
        self._heads = _interleaved_heads(header) if architecture == "llama" else {}

    def hf_name(self, name: str) -> str:
        """The HF name of a tensor of the file; an unknown one stays as it is."""
        stem, _, kind = name.rpartition(".")
        if stem in _ENDS:
            return f"{_ENDS[stem]}.{kind}"
        _, _, rest = stem.partition(".")
        number, _, part = rest.partition(".")
        return f"model.layers.{number}.{self._layer[part]}.{kind}" if part in self._layer else name

    def gguf_name(self, hf_name: str) -> str:
        """The name in the file of a tensor that a supported family has."""
        stem, _, kind = hf_name.rpartition(".")
        end = next((own for own, hf in _ENDS.items() if hf == stem), None)
        if end is not None:
            return f"{end}.{kind}"
        _, _, number, part = stem.split(".", 3)
        return f"blk.{number}.{self._part_of[part]}.{kind}"

    def hf_order(self, hf_name: str, rows: int) -> Order | None:
        """The rows of the file in the order of HF; None: it is the same."""
        heads = self._heads_of(hf_name)
        return None if heads is None else np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def gguf_order(self, hf_name: str, rows: int) -> Order | None:
        """The rows of HF in the order of the file; None: it is the same."""
        heads = self._heads_of(hf_name)
        return None if heads is None else np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)

    def offset(self, hf_name: str) -> float:
        """What the file's tensor has added."""
        return self._norm_offset if hf_name.endswith("norm.weight") else 0.0

    def _heads_of(self, hf_name: str) -> int | None:
        return next((heads for part, heads in self._heads.items() if part in hf_name), None)


def _interleaved_heads(header: GgufHeader) -> dict[str, int]:
    heads = header.metadata["llama.attention.head_count"]
    return {"q_proj": heads, "k_proj": header.metadata.get("llama.attention.head_count_kv", heads)}
