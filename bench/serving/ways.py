"""Question: as served, what do drafts bring one target, from a pool apart, in turn and ahead, or on its own KV?

One application has the same target once for each way. With a pool apart a target has core 0 and the pool core 1,
colocated a target has a thread on each. One target is asked at a time, every prompt of all of them, beginning with
another each time. Greedy streams over HTTP, EOS ignored; a rate counts the tokens behind the first, over their time.
Two ways that draft share the pool, and the second finds each prompt read there: ask for one beside off.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import MODELS, add_target, add_weights, checkpoint, ended, given, plain_parser
from bench.client import LoadClient, RequestTemplate, ServedAnswer
from bench.stats import Ratio, paired_ratio
from bench.workload import SPEC_BENCH, Workload, read_texts
from cli.arguments import one_of, several, whole
from cli.serve_command import stopped_by_sigterm
from deployments.cluster import running
from deployments.config import AppConfig
from link.listening import free_port
from model.load import WeightFormat

OFF = "off"
WAYS: Mapping[str, dict[str, Any] | None] = MappingProxyType({OFF: None, "turn": {"ahead": "off"}, "ahead": {}})
Answers = dict[str, list[ServedAnswer]]  # by way, in the order of the prompts
HEADER = ("way", "category", "tokens/s", "over off", "TTFT ms", "accepted of drafted", "same text")


@dataclass(frozen=True, slots=True)
class Row:
    """A way in a category, or in all. over_off: prompt by prompt. drafted, accepted: None of a single category."""

    way: str
    category: str
    tokens_per_second: float
    over_off: Ratio
    ttft_ms: float
    same_text: float
    drafted: int | None = None
    accepted: int | None = None


def config_of(args: Namespace) -> AppConfig:
    apart = args.placement == "separate"
    placed = {"page_size": 64, "threads": 1 if apart else 2}
    target = {"path": str(args.target), "weights": args.weights, "kv_mb": args.kv_mb, "max_batch": 4} | placed
    pool: dict[str, Any] = {"path": str(args.drafter), "kv_mb": args.kv_mb, "max_rows": 8}
    if apart:
        target, pool = target | {"cores": [0]}, pool | {"cores": [1]}
    targets = [target | {"name": way, "speculation": _speculation(WAYS[way], args.deadline_ms)} for way in args.ways]
    http = {"port": free_port()}
    return AppConfig.model_validate({"placement": args.placement, "targets": targets, "pool": pool, "http": http})


def _speculation(way: Mapping[str, Any] | None, deadline_ms: float) -> Mapping[str, Any] | None:
    return None if way is None else {"deadline_ms": deadline_ms, **way}


async def ask(url: str, prompts: Sequence[Sequence[int]], args: Namespace) -> tuple[Answers, dict[str, Any]]:
    """What each way answered, and what it counted. The first prompt is asked for once more before, to warm up."""
    template, answers = RequestTemplate(prompts, args.max_tokens), {way: list[ServedAnswer]() for way in args.ways}
    async with LoadClient(url, 1) as client:
        for number in tqdm(range(-1, len(prompts)), "prompts"):
            first = number % len(args.ways)
            for way in args.ways[first:] + args.ways[:first]:
                answers[way].append(await client.complete(template, way, max(number, 0)))
        counts = (await client.http.get("/debug/stats")).json()["targets"]
    return {way: told[1:] for way, told in answers.items()}, {way: counts[way][0] for way in args.ways}


def rows(answers: Answers, categories: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """categories: of the prompts, in their order."""
    found = []
    for way, own in answers.items():
        parts = [_row(way, category, own, answers[OFF], categories) for category in dict.fromkeys(categories)]
        whole_row = _row(way, "", own, answers[OFF], [""] * len(own))
        drafted, accepted = counts[way]["num_proposed"], counts[way]["num_accepted"]
        found += [*parts, replace(whole_row, drafted=drafted, accepted=accepted)]
    return found


def _row(
    way: str, category: str, own: Sequence[ServedAnswer], off: Sequence[ServedAnswer], categories: Sequence[str]
) -> Row:
    ours, plain = ([one for one, at in zip(each, categories, strict=True) if at == category] for each in (own, off))
    rates, base = ([one.decoding_rate for one in each] for each in (ours, plain))
    return Row(
        way=way,
        category=category,
        tokens_per_second=round(median(rates), 1),
        over_off=paired_ratio(rates, base),
        ttft_ms=round(1e3 * median(one.first_s - one.sent_s for one in ours), 1),
        same_text=mean(one.text == other.text for one, other in zip(ours, plain, strict=True)),
    )


def table(found: Sequence[Row], place: Mapping[str, Any]) -> str:
    cells = (
        (
            row.way,
            row.category or "all",
            f"{row.tokens_per_second:.1f}",
            row.over_off.text(),
            f"{row.ttft_ms:.0f}",
            _drafts(row),
            f"{row.same_text:.0%}",
        )
        for row in found
    )
    return machine.markdown(HEADER, cells, machine.footer(place))


def _drafts(row: Row) -> str:
    return f"{row.accepted} of {row.drafted}" if row.drafted is not None else ""


def run(args: Namespace) -> int:
    texts = Workload(read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target)), "own", args.num_prompts)
    of_each = {category: texts.prompts(category, args.num_prompts) for category in texts.categories}
    dealt = [
        (category, prompt)
        for turn in zip(*([(c, p) for p in own] for c, own in of_each.items()), strict=True)
        for category, prompt in turn
    ]
    with stopped_by_sigterm(), running(config_of(args)) as url:
        answers, counts = asyncio.run(ask(url, [prompt for _, prompt in dealt], args))
    found, place = rows(answers, [category for category, _ in dealt], counts), machine.describe()
    settings = given(args, "ways", "weights", "placement", "num_prompts", "max_tokens", "deadline_ms")
    report = {"machine": place, "settings": settings, "rows": [asdict(row) for row in found], "counts": counts}
    machine.publish(args.out, report, table(found, place))
    return int(any(row.same_text < 1 for row in found))


def main() -> int:
    parser = plain_parser(__doc__, "ways.json")
    add_target(parser)
    add_weights(parser, WeightFormat.DENSE)
    add = parser.add_argument
    add("--drafter", type=checkpoint, default=str(MODELS / "smollm2-drafter"), help="default: %(default)s")
    add("--ways", type=several(one_of(*WAYS)), default=[OFF, "ahead"], help="default: off,ahead")
    add("--placement", choices=("separate", "colocated"), default="separate", help="default: %(default)s")
    add("--prompts", type=Path, default=SPEC_BENCH, help="default: Spec-Bench's first turns")
    add("--num-prompts", type=whole(1), default=8, help="of each category (default: %(default)s)")
    add("--max-tokens", type=whole(2), default=128, help="default: %(default)s")
    add("--deadline-ms", type=float, default=100.0, help="of a draft (default: %(default)s)")
    add("--kv-mb", type=whole(1), default=256, help="of each replica (default: %(default)s)")
    return ended("bench.serving.ways", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
