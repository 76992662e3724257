"""The real TargetModel and NestedDrafter over table decoders, whose passes take their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drafters.nested import NestedDrafter
from model.batch import RaggedBatch
from model.pages import PageLedger
from protocol.request import SamplingParams
from simulation.costs import PoolTimes, TargetTimes
from simulation.decoder import TableDecoder
from simulation.text import World
from targets.model import ForwardRow, Halfway, TargetModel

Spend = Callable[[float], None]  # milliseconds


@dataclass(frozen=True, slots=True)
class Memory:
    """KV of a model, and how long a sequence may get."""

    num_pages: int = 4096
    page_size: int = 16
    max_positions: int = 4096


@dataclass(frozen=True, slots=True)
class SimulatedTarget(TargetModel):
    """world: whose text it writes. spend: lets a pass take so long. times: None: passes take none."""

    world: World
    times: TargetTimes | None
    spend: Spend

    def pick(
        self, rows: Sequence[ForwardRow], sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> list[int]:
        self._spend(rows, 1.0)
        return TargetModel.pick(self, rows, sampling, positions)

    def run_to(self, rows: Sequence[ForwardRow], layer: int) -> Halfway:
        self._spend(rows, layer / self.decoder.config.num_layers)
        return TargetModel.run_to(self, rows, layer)

    def early_picks(
        self,
        half: Halfway,
        places: Sequence[int],
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
        count: int,
    ) -> list[tuple[int, ...]]:
        states = self.decoder.logits(half.hidden, [half.wanted[place] for place in places])[:, 1].tolist()
        seeds = [sampling[place].seed for place in places]
        return [self.world.early_picks(state, seed, count) for state, seed in zip(states, seeds, strict=True)]

    def finish(self, half: Halfway, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        self._spend(half_rows(half), 1.0 - half.layer / self.decoder.config.num_layers)
        return TargetModel.finish(self, half, sampling, positions)

    def _spend(self, rows: Sequence[ForwardRow], share: float) -> None:
        """A row of which all logits are wanted is verified, every other one is a chunk of a prompt."""
        if self.times is None:
            return
        verified = [row for row in rows if row.num_logits == len(row.tokens)]
        chunks = [(row.start, row.start + len(row.tokens)) for row in rows if row.num_logits < len(row.tokens)]
        context = sum(row.start for row in verified) / max(len(verified), 1)
        ms = self.times.pass_ms(len(verified), sum(len(row.tokens) for row in verified), context, chunks)
        self.spend(share * ms)


def half_rows(half: Halfway) -> list[ForwardRow]:
    """The rows of a pass that is half done. Which logits are wanted of them its flat indices tell."""
    ends = half.batch.offsets
    wanted = [sum(first <= at < end for at in half.wanted) for first, end in zip(ends, ends[1:], strict=False)]
    return [
        ForwardRow(-1, len(row.slots) - row.num_new, (0,) * row.num_new, num_logits)
        for row, num_logits in zip(half.batch.rows, wanted, strict=True)
    ]


def simulated_target(
    world: World, times: TargetTimes | None, spend: Spend, memory: Memory, ledger: PageLedger | None = None
) -> SimulatedTarget:
    """ledger: another one than its own, for tests of what a wrong one does."""
    decoder = TableDecoder(world, (1, 2), memory.max_positions, _free)
    ledger = ledger or PageLedger(memory.num_pages, memory.page_size)
    kv = decoder.new_kv(memory.num_pages * memory.page_size)
    return SimulatedTarget(decoder, ledger, kv, world, times, spend)  # type: ignore[arg-type]


def simulated_drafter(
    world: World, exits: tuple[int, ...], charge: PoolCharge, memory: Memory, ledger: PageLedger | None = None
) -> NestedDrafter:
    """ledger: as of `simulated_target`."""
    decoder = TableDecoder(world, exits, memory.max_positions, charge, drafts=True)
    drafter = NestedDrafter(decoder, exits, memory.num_pages, memory.page_size)  # type: ignore[arg-type]
    drafter.ledger = ledger or drafter.ledger
    return drafter


@dataclass(slots=True)
class PoolCharge:
    """What the passes of one draft replica take, summed up until it is taken. times: None: nothing."""

    times: PoolTimes | None
    ms: float = 0.0
    _num_tokens: int = 0

    def __call__(self, start: int, stop: int, batch: RaggedBatch) -> None:
        self._num_tokens += start == 0
        if self.times is not None:
            first = self._num_tokens == 1
            self.ms += self.times.group_ms(start, stop, len(batch.rows), batch.num_tokens, first)

    def take(self) -> float:
        """Of the pass that has ended."""
        ms, self.ms, self._num_tokens = self.ms, 0.0, 0
        return ms


def _free(start: int, stop: int, batch: RaggedBatch) -> None:
    """The target's passes are priced whole."""
