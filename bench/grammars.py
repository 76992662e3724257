"""Question: what does a JSON schema cost? Answers that schemas shape, beside as long ones without, on one engine.

Requests run in batches with drafts, and once without any: the text must be the same, and valid by its schema.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerBase

from api.structured import of_json
from bench import machine
from bench.arguments import MODELS, add_target, add_threads, add_weights, checkpoint, ended, plain_parser
from bench.stats import paired_ratio
from cli.arguments import whole
from deployments.local import open_drafter
from deployments.models import grammars_of
from model.load import WeightFormat
from model.tokenizer import load_tokenizer
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.policy import Fixed, Off
from targets.complete import Completion, complete
from targets.engine import Engine, EngineConfig
from targets.model import load_target

MAX_TOKENS = 256  # of an answer; these schemas bound theirs
STR, INT = {"type": "string", "maxLength": 24}, {"type": "integer", "minimum": 0, "maximum": 9999}
KINDS: dict[str, Any] = {
    "s": STR,
    "i": INT,
    "n": {"type": "number", "minimum": 0, "maximum": 100},
    "b": {"type": "boolean"},
    "d": {"type": "string", "format": "date"},
    "p": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "l": {"type": "array", "items": STR, "minItems": 1, "maxItems": 3},
    "e": {"enum": ["low", "medium", "high", None]},
    "o": {"anyOf": [INT, {"type": "null"}]},
    "r": {"$ref": "#/$defs/part"},
    "m": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 1, "maxItems": 2},
}
PART = {"type": "object", "properties": {"id": INT, "label": STR}, "required": ["id"], "additionalProperties": False}
FIELDS = """
a city: name s population i capital b | a book: title s author s year i topics l | a recipe: dish s minutes i steps l
a person: first_name s last_name s age o email s | a product: name s price n in_stock b code p
a film: title s released d rating n | a song: title s artist s seconds i explicit b | a planet: name s moons o rings b
a meeting: subject s day d people l priority e | a bug report: summary s severity e fixed b steps l
an order: number p items m paid b | a house: street s rooms i garage b owner r | a dog: name s breed s weight n
a river: name s length_km n countries l | a train: line s departs d seats i delay o | a course: title s level e hours i
a football match: home s away s goals l played d | a star: name s distance n visible b
an invoice: number p total n due d lines m | a robot: model p parts m battery n status e
"""


def schemas() -> dict[str, dict[str, Any]]:
    """Twenty, by what they describe."""
    made = {}
    for line in FIELDS.strip().replace("\n", "|").split("|"):
        topic, fields = line.strip().split(": ")
        words = fields.split()
        properties = {name: KINDS[kind] for name, kind in zip(words[::2], words[1::2], strict=True)}
        shape = {"type": "object", "properties": properties, "required": words[::2], "additionalProperties": False}
        made[topic] = shape | {"$defs": {"part": PART}}
    return made


def asked(tokenizer: PreTrainedTokenizerBase, count: int, eos: frozenset[int]) -> list[GenerateRequest]:
    """Every other one is sampled. Each schema in turn."""
    made = []
    for index, (topic, schema) in enumerate(list(schemas().items()) * (1 + count // 20)):
        text = f"Describe {topic} (number {index}) as JSON with the fields {', '.join(schema['properties'])}."
        turns = [{"role": "user", "content": text}]
        prompt: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        sampling, stop = SamplingParams(0.7 * (index % 2), seed=index), StopRules(MAX_TOKENS, eos)
        made.append(
            GenerateRequest(str(index), tuple(prompt["input_ids"]), sampling, stop, grammar=of_json(schema, "schema"))
        )
    return made[:count]


def invalid(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Completion]) -> list[str]:
    """The texts that their schemas refuse."""
    texts = [str(tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)) for answer in answers]
    shapes = list(schemas().values())
    return [text for index, text in enumerate(texts) if not _is_valid(text, shapes[index % len(shapes)])]


def _is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        return bool(Draft202012Validator(schema).is_valid(json.loads(text)))
    except ValueError:
        return False


def measure(args: Namespace) -> dict[str, Any]:
    """Tokens per second of shaped answers and of free ones that are as long, by repetition."""
    torch.set_num_threads(args.threads)
    sizes: dict[str, Any] = {"num_positions": 16 * 1024, "page_size": 32, "dtype": torch.bfloat16}
    model = load_target(args.target, weights=WeightFormat(args.weights), **sizes)
    model = replace(model, grammars=grammars_of(str(args.target), args.target, model.decoder.config))
    drafter = open_drafter(model, args.target, args.drafter, max_rows=args.batch, **sizes)
    tokenizer, eos = load_tokenizer(args.target), frozenset(model.decoder.config.eos_token_ids)
    shaped, config = asked(tokenizer, args.requests, eos), EngineConfig(args.batch, max_queue=len(FIELDS))

    def play(requests: Sequence[GenerateRequest], drafts: bool = True) -> tuple[float, list[Completion]]:
        policy = Fixed(drafter.exits[-1], args.length) if drafts else Off()
        with Engine(model, policy, drafter.client if drafts else None, config) as engine:
            model.ledger.forget()
            began = time.perf_counter()
            answers = complete(engine, requests)
            return sum(len(each.token_ids) for each in answers) / (time.perf_counter() - began), answers

    plain_rate, plain = play(shaped, drafts=False)
    free = [
        replace(one, grammar="", stop=StopRules(len(answer.token_ids)))
        for one, answer in zip(shaped, plain, strict=True)
    ]
    rates: list[tuple[float, float]] = []
    for _ in range(args.pairs):
        (rate, drafted), (free_rate, unshaped) = play(shaped), play(free)
        rates.append((rate, free_rate))
    counts = [
        (sum(each.stats.drafted for each in one), sum(each.stats.accepted for each in one))
        for one in (drafted, unshaped)
    ]
    return {
        "rates": rates,
        "plain": plain_rate,
        "tokens": sum(len(each.token_ids) for each in plain),
        "drafted": counts,
        "different": sum(one.token_ids != other.token_ids for one, other in zip(plain, drafted, strict=True)),
        "invalid": len(invalid(tokenizer, drafted)),
    }


def table(found: dict[str, Any], place: dict[str, object]) -> str:
    shaped, free = zip(*found["rates"], strict=True)
    ratio = paired_ratio(shaped, free)
    heads = ["tokens", "invalid", "unlike speculation off", "tokens/s", "without schemas", "ratio"]
    heads += ["accepted drafts", "without schemas"]
    cells = (f"{median(shaped):.0f}", f"{median(free):.0f}")
    drafts = (f"{accepted} of {drafted}" for drafted, accepted in found["drafted"])
    row = (found["tokens"], found["invalid"], found["different"], *cells, ratio.text(), *drafts)
    return machine.markdown(heads, [row], machine.footer(place))


def run(args: Namespace) -> int:
    place, found = machine.describe(), measure(args)
    machine.publish(args.out, {"machine": place} | found, table(found, place))
    return int(bool(found["invalid"] or found["different"]))


def main() -> int:
    parser = plain_parser(__doc__, "grammars.json")
    add_target(parser)
    add_threads(parser)
    add_weights(parser, WeightFormat.DENSE)
    add = parser.add_argument
    add("--drafter", type=checkpoint, default=str(MODELS / "smollm2-drafter"), help="default: %(default)s")
    add("--requests", type=whole(1), default=200, help="default: %(default)s")
    add("--batch", type=whole(1), default=8, help="default: %(default)s")
    add("--length", type=whole(1), default=4, help="of drafts (default: %(default)s)")
    add("--pairs", type=whole(1), default=3, help="interleaved repetitions (default: %(default)s)")
    return ended("bench.grammars", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
