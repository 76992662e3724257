"""A decoder whose arithmetic is a table: the seam between the real bookkeeping and simulated text.

A hidden state says (token, state, depth): the token itself, the hash of everything up to it, and how many layers it has
passed. The KV of a layer group holds, slot by slot, the state of the position that wrote it, and a token finds its own
state from the one in the slot before it. So KV that was never written, was overwritten, or belongs to another branch
gives another text, in the very layers that read it: pages, watermarks and boundary states are those of the real
TargetModel and NestedDrafter, and their mistakes show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from model.batch import CPU, RaggedBatch
from model.config import DecoderConfig, Rope
from model.rollout import Drafted, Rollout, roll_out, step
from protocol.request import SamplingParams
from simulation.text import World, mix

Charge = Callable[[int, int, RaggedBatch], None]  # layers [start, stop) over a batch take their time
HIDDEN = 3


class TableKV:
    """states[g][slot]: of layer group g, 0 where nothing was written."""

    def __init__(self, num_groups: int, num_slots: int) -> None:
        self.states = [[0] * num_slots for _ in range(num_groups)]


class TableDecoder:
    """A model.decoder.Decoder. A pass stops at the ends of its layer groups only."""

    is_deterministic = True
    dtype = hidden_dtype = torch.int64
    device = CPU

    def __init__(self, world: World, ends: Sequence[int], max_positions: int, charge: Charge) -> None:
        """ends: of its layer groups, ascending, in layers."""
        self.config = table_config(world.vocab_size, ends[-1], max_positions)
        self._world = world
        self._starts = {start: group for group, start in enumerate((0, *ends))}
        self._charge = charge

    def new_kv(self, num_slots: int) -> TableKV:
        return TableKV(len(self._starts) - 1, num_slots)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        return _tensor([(token, 0, 0) for token in token_ids])

    def run(self, hidden: Tensor, batch: RaggedBatch, kv: TableKV, start: int, stop: int) -> Tensor:
        groups = kv.states[self._starts[start] : self._starts[stop]]
        tokens = iter(hidden[:, 0].tolist())
        out: list[tuple[int, int, int]] = []
        for row in batch.rows:
            first = len(row.slots) - row.num_new
            slots = row.slots[max(first - 1, 0) :].tolist()
            state = _before(groups, slots.pop(0)) if first else self._world.root
            for slot in slots:
                token = next(tokens)
                state = mix(state, token)
                for own in groups:
                    own[slot] = state
                out.append((token, state, stop))
        self._charge(start, stop, batch)
        return _tensor(out)

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        """Nothing is scored: the hidden states, from which `pick` looks up the text."""
        return hidden[list(rows)]

    def step(
        self,
        token_ids: Sequence[int],
        batch: RaggedBatch,
        kv: TableKV,
        wanted: Sequence[int],
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
    ) -> tuple[list[int], Tensor]:
        return step(self, token_ids, batch, kv, wanted, sampling, positions)  # type: ignore[arg-type]

    def roll_out(
        self, rows: Sequence[Rollout], kv: TableKV, depth: int, boundary: Tensor | None, *_: object
    ) -> list[Drafted]:
        return roll_out(self, rows, kv, depth, boundary)  # type: ignore[arg-type]

    def pick(self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        states = logits[:, 1].tolist()
        return [self._world.pick(state, own.seed) for state, own in zip(states, sampling, strict=True)]

    def pick_with_confidence(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """As the drafter does; only `pick` is a target's."""
        found = [
            self._world.drafted(state, own.seed, position, depth)
            for (_, state, depth), own, position in zip(logits.tolist(), sampling, positions, strict=True)
        ]
        return [token for token, _ in found], [confidence for _, confidence in found]


def _tensor(rows: Sequence[tuple[int, int, int]]) -> Tensor:
    return torch.from_numpy(np.array(rows, np.int64).reshape(-1, HIDDEN))


def _before(groups: Sequence[list[int]], slot: int) -> int:
    """The state that all of the groups hold there; where they differ, one that is nobody's."""
    states = {own[slot] for own in groups}
    return states.pop() if len(states) == 1 else mix(*sorted(states)[:2])


def table_config(vocab_size: int, num_layers: int, max_positions: int) -> DecoderConfig:
    """A config of no family: only its sizes are read."""
    windows, ropes = (None,) * num_layers, (Rope((1.0,)),) * num_layers
    sizes = vocab_size, HIDDEN, 1, num_layers, 1, 1, 1, max_positions
    return DecoderConfig("table", *sizes, (), None, None, "silu", 0.0, 1.0, windows, ropes)
