"""The real TargetModel and NestedDrafter over table decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drafters.nested import NestedDrafter
from model.pages import PageLedger
from simulation.decoder import Charge, TableDecoder
from simulation.text import World
from targets.model import TargetModel

Ledger = Callable[[int, int], PageLedger]


@dataclass(frozen=True, slots=True)
class Memory:
    """KV of a model, and how long a sequence may get. ledger: what keeps its pages."""

    num_pages: int = 4096
    page_size: int = 16
    max_positions: int = 4096
    ledger: Ledger = PageLedger


def simulated_target(world: World, charge: Charge, memory: Memory) -> TargetModel:
    decoder = TableDecoder(world, (1,), memory.max_positions, charge)
    ledger = memory.ledger(memory.num_pages, memory.page_size)
    kv = decoder.new_kv(memory.num_pages * memory.page_size)
    return TargetModel(decoder, ledger, kv)  # type: ignore[arg-type]


def simulated_drafter(world: World, exits: tuple[int, ...], charge: Charge, memory: Memory) -> NestedDrafter:
    decoder = TableDecoder(world, exits, memory.max_positions, charge)
    drafter = NestedDrafter(decoder, exits, memory.num_pages, memory.page_size)  # type: ignore[arg-type]
    drafter.ledger = memory.ledger(memory.num_pages, memory.page_size)
    return drafter
