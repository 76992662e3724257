"""Templates as hostile as a checkpoint can hold: bounded in time, memory and size, and nobody else is kept waiting."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest

from api.backend import ModelCard
from api.chat import render, template_arguments
from api.rendering import Renderer, RenderLimits
from protocol.errors import InvalidRequest, PromptTooLong
from tests.api.api_client import TEXT, Client, error_of
from tests.api.api_twins import ScriptedBackend, card, says
from tests.api.real_tokenizers import CHECKPOINTS, tokenizer_of

LIMITS = RenderLimits(cpu_s=0.4, memory_bytes=64 << 20)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(LIMITS)


def hostile(template: str, renderer: Renderer, name: str = "tiny") -> ModelCard:
    return replace(card(name, chat_template=template), renderer=renderer)


FOREVER = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
ENDLESS = {
    "loops": FOREVER,
    "power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "filter": "{{ range(99999) | map('string') | list | sort | join('x') | wordcount }}" * 40,
    "macro": "{% macro f(n) %}{% for i in range(9) %}{{ f(n + 1) if n < 99 }}{% endfor %}{% endmacro %}{{ f(0) }}",
}
HUGE = {
    "multiplied": "{{ 'x' * 10 ** 10 }}",
    "doubled": "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "format": "{{ '%09999999999d' % 1 }}",
    "center": "{{ 'x' | center(9999999999) }}",
    "list": "{{ ([0] * 10 ** 9) | length }}",
    "replaced": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "indent": "{{ messages | tojson(indent=9999999999) }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
async def test_a_template_that_does_not_end_is_stopped(renderer: Renderer, template: str) -> None:
    num_answered = 0
    async with Client(ScriptedBackend(says(TEXT), (hostile(template, renderer),))) as client:
        asked = asyncio.create_task(client.chat())
        while not asked.done():
            assert (await client.get("/health")).status_code == 200
            num_answered += not asked.done()
            await asyncio.sleep(0.01)
        error = error_of(await asked, 400)
    assert error["message"] == "the chat template of tiny refuses these messages: it takes more than 0.4 s"
    assert num_answered > 0, "others are answered meanwhile"


@pytest.mark.parametrize("template", HUGE.values(), ids=HUGE)
async def test_a_template_that_makes_gigabytes_is_refused(renderer: Renderer, template: str) -> None:
    before = psutil.Process().memory_info().rss
    async with Client(ScriptedBackend(says(TEXT), (hostile(template, renderer),))) as client:
        error = error_of(await client.chat(), 400)
    assert error["message"].startswith("the chat template of tiny refuses these messages: ")
    assert psutil.Process().memory_info().rss - before < 64 << 20


async def test_a_text_that_cannot_fit_is_refused_by_its_size_before_it_is_tokenized(renderer: Renderer) -> None:
    model = hostile("{{ 'grüße ' * 30000 }}", renderer)
    async with Client(ScriptedBackend(says(TEXT), (model,))) as client:
        error = error_of(await client.chat(), 400)
    assert error["code"] == "context_length_exceeded"
    assert f"it makes 240000 bytes of them, and {64 * model.max_token_bytes} can fit" in error["message"]


async def test_after_a_hostile_text_the_next_one_is_rendered(renderer: Renderer) -> None:
    good = template_arguments(card().tokenizer, [{"role": "user", "content": "hello"}])
    wanted = render(card().tokenizer, [{"role": "user", "content": "hello"}])
    for template in (FOREVER, HUGE["multiplied"], "{{ raise_exception('no') }}"):
        with pytest.raises(InvalidRequest):
            await renderer.render(good | {"chat_template": template}, 1000)
        assert await renderer.render(good, 1000) == wanted


async def test_a_hostile_model_delays_no_other(renderer: Renderer) -> None:
    good = replace(card("good"), renderer=Renderer())
    async with Client(ScriptedBackend(says(TEXT), (hostile(FOREVER, renderer, "bad"), good))) as client:
        async with stopped(renderer):
            waiting = [asyncio.create_task(client.chat(model="bad")) for _ in range(4)]
            assert (await client.chat(model="good")).status_code == 200
            assert not any(task.done() for task in waiting)
        for task in waiting:
            error_of(await task, 400)


@asynccontextmanager
async def stopped(renderer: Renderer) -> AsyncIterator[None]:
    """While its process stands still."""
    await renderer.render({"conversations": [[]], "chat_template": "x"}, 10)
    worker = worker_of(renderer)
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.environ }}",
    "{{ messages.append(1) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ ''.format_map({}) if False else '{0.__class__}'.format(messages) }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("template", ESCAPES)
async def test_the_sandbox_holds(renderer: Renderer, template: str) -> None:
    talk = [{"role": "user", "content": "x"}]
    try:
        text = await renderer.render({"conversations": [talk], "chat_template": template}, 1 << 20)
    except InvalidRequest as error:
        text = str(error)
    assert text == "" or re.match(r"\w+Error: ", text), text
    assert not any(leak in text for leak in ("<class", "environ(", "uid=", "root:", "__builtins__"))


def worker_of(renderer: Renderer) -> psutil.Process:
    assert renderer._worker is not None
    return psutil.Process(renderer._worker._process.pid)


async def test_the_process_has_no_secret_and_may_start_none(
    monkeypatch: pytest.MonkeyPatch, renderer: Renderer
) -> None:
    monkeypatch.setenv("DRAFTPOOL_API_KEYS", "key-of-the-environment")
    fresh = Renderer()
    assert await fresh.render({"conversations": [[]], "chat_template": "x"}, 10) == "x"
    worker = worker_of(fresh)
    assert "DRAFTPOOL_API_KEYS" not in worker.environ()
    assert worker.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
    assert 0 < worker.rlimit(psutil.RLIMIT_AS)[0] < 8 << 30


async def test_a_process_that_is_gone_is_replaced_and_the_text_is_rendered_all_the_same(renderer: Renderer) -> None:
    arguments: dict[str, Any] = {"conversations": [[]], "chat_template": "x"}
    await renderer.render(arguments, 10)
    worker = worker_of(renderer)
    worker.kill()
    assert await renderer.render(arguments, 10) == "x"
    assert worker_of(renderer).pid != worker.pid


async def test_its_process_ends_with_a_renderer() -> None:
    fresh = Renderer()
    await fresh.render({"conversations": [[]], "chat_template": "x"}, 10)
    worker = worker_of(fresh)
    del fresh
    gc.collect()
    end = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_caller_that_leaves_takes_nothing_from_the_next(renderer: Renderer) -> None:
    arguments: dict[str, Any] = {"conversations": [[]], "chat_template": FOREVER}
    async with stopped(renderer):
        left = asyncio.create_task(renderer.render(arguments, 10))
        await asyncio.sleep(0)
        while not renderer._thread._work_queue.empty():
            await asyncio.sleep(0)
        left.cancel()
    assert await renderer.render(arguments | {"chat_template": "mine"}, 10) == "mine"


TALKS = [
    [("user", "grüße 🙂\n")],
    [("system", "be brief"), ("user", "a < b"), ("assistant", "yes"), ("user", "\ufdd0 <|im_end|>")],
    [("user", "x"), ("assistant", "<think>\nwell\n</think>\n\ny"), ("user", " \t ")],
]


@pytest.mark.parametrize("name", CHECKPOINTS)
async def test_the_text_is_that_of_transformers(renderer: Renderer, name: str) -> None:
    tokenizer = tokenizer_of(name)
    for talk in TALKS:
        turns = [{"role": role, "content": content} for role, content in talk]
        plain = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert await renderer.render(template_arguments(tokenizer, turns), 1 << 20) == plain
        assert render(tokenizer, turns) == plain


async def test_too_long_is_told_apart_from_broken(renderer: Renderer) -> None:
    arguments: dict[str, Any] = {"conversations": [[]], "chat_template": "12345"}
    assert await renderer.render(arguments, 5) == "12345"
    with pytest.raises(PromptTooLong):
        await renderer.render(arguments, 4)
    with pytest.raises(InvalidRequest, match="UnicodeEncodeError"):
        await renderer.render(arguments | {"chat_template": "{{ '\\ud800' }}"}, 1000)
