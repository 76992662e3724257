"""The mirror turn: while a window is verified, the pool drafts the windows behind its likely outcomes.

    plan      as in targets/step.py
    resolve   the branches that came; the window behind what was committed, or a fresh draft where none is at hand
    overlap   the pool is told what is being verified, half way what the target would pick so far; then the picks
    commit    as in targets/step.py

Mirror-SD (Apple, 2025), section 3, and the speculation cache of SSD. Every token of a window is verified, so nothing
that the pool says or fails to say changes a text; a pool that is silent costs what it costs in the plain turn, and in a
few rounds the wait for branches that do not come (router/misses.py). Rounds of half a batch are in targets/lanes.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from protocol.branch import AheadRequest, MirrorClient
from protocol.errors import ConfigError
from protocol.plan import BatchView, Plan
from protocol.stats import MirrorStats
from router import misses
from router.misses import Rates, worth_waiting
from router.mode_choice import Modes
from router.modes import AHEAD, Mode
from router.pipeline import Pipeline, Source, Window, fan_out
from router.policy import Policy, granted
from router.predict import SETTLED
from targets.ahead import as_block, as_played, ending, fresh_window, hint_of, joined, order_of, places_of
from targets.drafting import Drafting, Drafts
from targets.fates import Fates
from targets.fence import Fence
from targets.lanes import Lanes
from targets.model import TargetModel
from targets.scheduler import Schedule, Scheduler
from targets.sequence import Sequence
from targets.step import Clock, Marks, Pass, Stepper, Turn
from targets.timeline import Lap, RoundRecord, Timeline


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """fan_out: branches of a sequence at most. kappa: early picks at each place at most; 0: no early exit.

    exit_layer: after how many layers the early picks are taken; None: half of them. modes: to choose from, by what
    they promise (router/mode_choice.py).
    """

    fan_out: int = 8
    kappa: int = 2
    exit_layer: int | None = None
    modes: tuple[Mode, ...] = (Mode.HINTED,)

    def __post_init__(self) -> None:
        if self.fan_out < 1 or self.kappa < 0 or not self.modes:
            raise ConfigError(f"mirror: fan_out must be at least 1, kappa at least 0, with a mode or more; got {self}")


@dataclass(frozen=True, slots=True)
class Hand:
    """What a round has to verify. windows: by decoding row, those at hand and fresh ones.

    looked: when windows had been looked up. num_missed: rows that none was at hand for. waited: fresh ones were asked
    for.
    """

    windows: tuple[Window | None, ...]
    drafts: Drafts
    looked: float
    num_missed: int
    waited: bool


@dataclass(slots=True)
class Waits:
    """Of one kind of round."""

    num: int = 0
    ms: float = 0.0

    def add(self, ms: float) -> None:
        self.num += 1
        self.ms += ms


@dataclass(frozen=True, slots=True)
class Picked:
    """early, hinted: when the early picks were there, and on their way; None in a pass without."""

    picks: list[list[int]]
    early: float | None = None
    hinted: float | None = None

    def lengths(self, num_decoding: int) -> tuple[int, ...]:
        """Tokens that were verified, by decoding row."""
        return tuple(len(own) - 1 for own in self.picks[:num_decoding])


class MirrorStepper(Stepper):
    def __init__(
        self,
        model: TargetModel,
        policy: Policy,
        scheduler: Scheduler,
        drafting: Drafting,
        client: MirrorClient,
        config: MirrorConfig,
        fence: Fence,
        clock: Clock = time.perf_counter,
    ) -> None:
        """client: that of `drafting`. fence: around what is learned of rounds and recorded of them.

        Raises ConfigError for an exit that lies outside the model.
        """
        super().__init__(model, policy, scheduler, drafting, clock)
        num_layers = model.decoder.config.num_layers
        self.exit_layer = num_layers // 2 if config.exit_layer is None else config.exit_layer
        if not 0 <= self.exit_layer <= num_layers:
            raise ConfigError(f"mirror: exit_layer {self.exit_layer} is not one of the model's {num_layers}")
        self.timeline = Timeline()
        self._pipeline = Pipeline()
        self._pool, self._client, self._config, self._fence = drafting, client, config, fence
        self._rates = Rates()
        self._modes = Modes(config.modes)
        self._lanes = Lanes(self, drafting, client)
        self._drafted = False  # drafts came in the last round of the whole batch
        self._length = 0  # the longest planned lately
        self._fates = Fates()
        self._num_rounds = self._num_waits = self._num_lanes = 0
        self._wait_ms = 0.0
        self._hit_waits, self._fresh_waits = Waits(), Waits()

    def step(self) -> Turn:
        began = self.clock()
        self.admit()
        num_rows = len(self.scheduler.decoding)
        mode = self._mode(num_rows)
        lap = self._half(began) if mode is Mode.LANES and self._drafts else self._whole(began, mode)
        if self._fence.open:
            with self._fence:
                self._note(num_rows, lap)
        return lap.turn

    def _mode(self, num_rows: int) -> Mode:
        mode = Mode.SERIAL
        if self._fence.open:
            with self._fence:
                mode = self._modes.choose(num_rows)
        return mode

    def _note(self, num_rows: int, lap: Lap) -> None:
        record = lap.record
        self._num_rounds += bool(record.lengths)
        self._count_wait(record, 1e3 * (record.marks.drafted - record.marks.planned))
        if played := lap.played:
            self._modes.observe(num_rows, played)
        self.timeline.add(record)

    def _count_wait(self, record: RoundRecord, wait_ms: float) -> None:
        self._wait_ms += wait_ms
        if record.waited:
            self._fresh_waits.add(wait_ms)
        elif any(record.hits):
            self._hit_waits.add(wait_ms)

    @property
    def _drafts(self) -> bool:
        """Whether drafts are on their way, or came lately: without any, half a batch is a waste of a pass."""
        return self._lanes.in_flight or self._drafted

    def _half(self, began: float) -> Lap:
        if self._lanes.in_flight:
            self._num_lanes += 1
        else:
            self._num_waits += 1
            for sequence in self.scheduler.decoding:
                self._pipeline.forget(sequence.id)
        self._drafted = False
        return self._lanes.step(began)

    def _whole(self, began: float, mode: Mode) -> Lap:
        self._lanes.drop()
        schedule = self.plan(mode.value if mode in AHEAD else "")
        planned = self.clock()
        hand = self.resolve(schedule)
        drafted = self.clock()
        picked = self.overlap(schedule, hand, mode)
        marks = Marks(began, planned, drafted, self.clock())
        played = replace(schedule, plan=as_played(schedule.plan, hand.windows))
        turn = self.commit(played, hand.drafts, picked.picks, marks)
        if self._fence.open:
            with self._fence:
                self._fates.add(played.plan, hand.drafts.blocks, picked.picks)
                self._rate(schedule, hand, picked, marks, turn)
        self._drafted = any(block and block.tokens for block in hand.drafts.blocks)
        self._length = max(self._length - 1, *schedule.plan.lengths, 0)
        record = RoundRecord(
            round_id=self._pool.round_id,
            mode=mode if mode in AHEAD else Mode.SERIAL,
            marks=marks,
            looked=hand.looked,
            early=picked.early,
            hinted=picked.hinted,
            hits=tuple(window.source if window else None for window in hand.windows),
            lengths=picked.lengths(len(schedule.decoding)),
            num_committed=turn.stats.committed,
            num_prefill_tokens=turn.stats.num_prefill_tokens,
            waited=hand.waited,
            ended=self.clock(),
        )
        return Lap(turn, record, sum(map(bool, schedule.plan.lengths)), max(hand.drafts.num_fed, default=0))

    def resolve(self, schedule: Schedule) -> Hand:
        """Windows for the rows that are planned to have one, as far as fresh ones are worth the wait."""
        plan, decoding = schedule.plan, schedule.decoding
        self._collect([sequence.id for sequence, length in zip(decoding, plan.lengths, strict=True) if length])
        found = [
            self._pipeline.resolve(sequence.id, sequence.tokens) if length else None
            for sequence, length in zip(decoding, plan.lengths, strict=True)
        ]
        looked = self.clock()
        missing = [0 if window else length for window, length in zip(found, plan.lengths, strict=True)]
        num_missed = sum(length > 0 for length in missing)
        num_hits = sum(window is not None for window in found)
        waits = num_missed > 0 and worth_waiting(self._rates, len(decoding), num_hits, num_missed)
        asked = replace(plan, lengths=tuple(missing) if waits else (0,) * len(missing))
        drafts = self._pool.draft(decoding, asked)
        windows = [
            window or fresh_window(plan, index, block)
            for index, (window, block) in enumerate(zip(found, drafts.blocks, strict=True))
        ]
        blocks = [
            self._pool.read(as_block(sequence.id, window), length) if window else block
            for sequence, window, length, block in zip(decoding, found, plan.lengths, drafts.blocks, strict=True)
        ]
        waited = waits and (any(drafts.num_fed) or not drafts.answered)  # silent sequences are not asked for
        drafts = replace(drafts, blocks=tuple(blocks), ahead=num_hits > 0)
        return Hand(tuple(windows), drafts, looked, num_missed, waited)

    def _collect(self, wanting: Iterable[int]) -> None:
        """The branches that came, and those on their way for these sequences, as long as they are worth the wait."""
        self._pipeline.take(self._client.branches())
        missing = [one for one in wanting if self._pipeline.awaits(one)]
        until = self.clock() + 1e-3 * misses.patience_ms(self._rates)
        while missing and (left := until - self.clock()) > 0 and (came := self._client.branches(left)):
            self._pipeline.take(came)
            missing = [one for one in missing if self._pipeline.awaits(one)]
        self._rates = misses.awaited(self._rates, not missing)

    def overlap(self, schedule: Schedule, hand: Hand, mode: Mode) -> Picked:
        """The pass, and what the pool is told of it before and half way, as far as the mode wants it told."""
        ready = self.gather(schedule, hand.drafts)
        request = self._begin(schedule, hand, ready) if mode in AHEAD else None
        if request is None:
            return Picked(self.pick(ready))
        self._client.ahead(request)
        num_picks = fan_out(len(schedule.decoding), self._config.kappa) if mode is Mode.HINTED else 0
        if not num_picks:
            return Picked(self.pick(ready))
        half = self.model.run_to(ready.rows, self.exit_layer)
        num_logits = [row.num_logits for row in ready.rows if row.num_logits]
        places = places_of(request, [*schedule.decoding, *ending(schedule, ready)], num_logits)
        own = self.model.early_picks(half, places, ready.sampling, ready.positions, num_picks)
        early = self.clock()
        self._client.hint(hint_of(request, own))
        hinted = self.clock()
        return Picked(self.sound(ready, self.model.finish(half, ready.sampling, ready.positions)), early, hinted)

    def remove(self, sequence: Sequence) -> None:
        super().remove(sequence)
        self._pipeline.forget(sequence.id)

    @property
    def stats(self) -> MirrorStats:
        pipeline, hits = self._pipeline, self._pipeline.hits
        return MirrorStats(
            num_rounds=self._num_rounds,
            hits_full=hits[Source.FULL],
            hits_runner_up=hits[Source.RUNNER_UP],
            hits_early_exit=hits[Source.EARLY_EXIT],
            hits_rest=hits[Source.REST],
            num_misses=pipeline.num_misses,
            num_branches=pipeline.num_branches,
            num_tokens=pipeline.num_tokens,
            num_fenced=pipeline.num_fenced,
            num_waits=self._num_waits,
            wait_ms=self._wait_ms,
            num_lanes=self._num_lanes,
            num_hit_rounds=self._hit_waits.num,
            hit_wait_ms=self._hit_waits.ms,
            num_fresh_rounds=self._fresh_waits.num,
            fresh_wait_ms=self._fresh_waits.ms,
        )

    def _begin(self, schedule: Schedule, hand: Hand, ready: Pass) -> AheadRequest | None:
        """What the pool may prepare, behind prompts that end too; the pipeline knows then what is in flight."""
        decoding, prompts = schedule.decoding, ending(schedule, ready)
        for prompt in prompts:
            self._pipeline.resolve(prompt.id, prompt.tokens)
        whom, plan = [*decoding, *prompts], joined(schedule.plan, self._first_plan(prompts))
        windows = [*(row.tokens[1:] for row in ready.rows[: len(decoding)]), *([] for _ in prompts)]
        most = fan_out(len(whom), self._config.fan_out)
        request = self._pool.ahead(whom, plan, windows, most, self._fates.calibration)
        orders = {row.context.sequence_id: order_of(request, row) for row in request.rows} if request else {}
        at_hand = [*hand.windows, *(None for _ in prompts)]
        for sequence, length, window, own in zip(whom, plan.lengths, at_hand, windows, strict=True):
            if length:
                self._pipeline.begin(sequence.id, window, len(own), orders.get(sequence.id))
        return request

    def _first_plan(self, prompts: list[Sequence]) -> Plan:
        """What is likely to be planned for these when their prompts have ended: the longest that others have lately."""
        opening = self.policy.opening()
        length = self._length if opening else 0
        view = BatchView(tuple(prompt.view(self._pool.num_unseen(prompt), True) for prompt in prompts))
        return granted(view, Plan(opening, (length,) * len(prompts)))

    def _rate(self, schedule: Schedule, hand: Hand, picked: Picked, marks: Marks, turn: Turn) -> None:
        """What waiting takes and brings."""
        self._num_waits += hand.waited
        if hand.waited and max(hand.drafts.num_fed) <= SETTLED:  # a first draft waits for its context
            self._rates = misses.waited(self._rates, 1e3 * (marks.drafted - hand.looked))
        elif hand.num_missed and not hand.waited:
            self._rates = misses.skipped(self._rates)
        lengths = picked.lengths(len(schedule.decoding))
        if lengths and not schedule.chunks:
            num_windows, verify_ms = sum(map(bool, lengths)), 1e3 * (marks.verified - marks.drafted)
            self._rates = misses.verified(self._rates, verify_ms, num_windows, turn.stats.accepted)
