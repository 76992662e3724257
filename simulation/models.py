"""The real TargetModel and NestedDrafter over table decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drafters.nested import NestedDrafter
from model.pages import PageLedger
from protocol.request import SamplingParams
from simulation.decoder import Charge, TableDecoder
from simulation.text import World
from targets.model import Halfway, TargetModel

LAYERS = (1, 2)  # of a target: up to its early exit, and in all
Ledger = Callable[[int, int], PageLedger]


@dataclass(frozen=True, slots=True)
class Memory:
    """KV of a model, and how long a sequence may get. ledger: what keeps its pages."""

    num_pages: int = 4096
    page_size: int = 16
    max_positions: int = 4096
    ledger: Ledger = PageLedger


@dataclass(frozen=True, slots=True)
class SimulatedTarget(TargetModel):
    """world: whose text it writes."""

    world: World

    def early_picks(
        self,
        half: Halfway,
        places: Sequence[int],
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
        count: int,
    ) -> list[tuple[int, ...]]:
        states = half.hidden[[half.wanted[place] for place in places], 1].tolist()
        seeds = [sampling[place].seed for place in places]
        return [self.world.early_picks(state, seed, count) for state, seed in zip(states, seeds, strict=True)]


def simulated_target(world: World, charge: Charge, memory: Memory) -> SimulatedTarget:
    decoder = TableDecoder(world, LAYERS, memory.max_positions, charge)
    ledger = memory.ledger(memory.num_pages, memory.page_size)
    kv = decoder.new_kv(memory.num_pages * memory.page_size)
    return SimulatedTarget(decoder, ledger, kv, world)  # type: ignore[arg-type]


def simulated_drafter(world: World, exits: tuple[int, ...], charge: Charge, memory: Memory) -> NestedDrafter:
    decoder = TableDecoder(world, exits, memory.max_positions, charge, drafts=True)
    drafter = NestedDrafter(decoder, exits, memory.num_pages, memory.page_size)  # type: ignore[arg-type]
    drafter.ledger = memory.ledger(memory.num_pages, memory.page_size)
    return drafter
