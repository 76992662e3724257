"""The page in headless Chromium, over a served application with the demo's models and a draft pool.

`DRAFTPOOL_PICTURES=FOLDER` keeps the pictures that the tests take (docs/page/ has some). axe-core comes from npm into
the test's own folder; where it cannot be had, or Chromium is not there, a test is skipped and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.demo_family import CODE as CONFIG
from deployments import cluster
from deployments.config import AppConfig, HttpConfig, load_config
from deployments.config_access import AccessConfig
from deployments.config_speculation import FixedSpeculation
from protocol.plan import Mode
from tests.api.page.browser import DESKTOP, END, ENTER, PHONE, RIGHT, SHIFT, Browser, browser
from tests.deployments.head import Head
from tests.deployments.served import Served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

KEY, ADMIN_KEY = "a-key-of-the-test-1", "an-admin-key-of-the-test"
AXE = "axe-core@4.11.0"
SERIOUS = {"serious", "critical"}
MOST_BYTES = 200_000  # of a picture
LINES = ("def read_lines(path):", '    """Return the lines of a text file, without their line ends."""')
SOURCES = "[...document.querySelectorAll('.token')].map((token) => Number(token.dataset.source))"
DONE = "!document.querySelector('#send').hidden && document.querySelectorAll('.foot > .shares').length"


def with_drafts_ahead(config: AppConfig, http_port: int, access: AccessConfig) -> AppConfig:
    """`large` drafts at one exit, ahead where it can; `small` as its router decides."""
    large, small = config.targets
    fixed = FixedSpeculation(policy="fixed", depth=4, ahead=True, deadline_ms=1000.0)
    assert config.pool is not None
    changes = {
        "targets": (large.model_copy(update={"speculation": fixed}), small),
        "pool": config.pool.model_copy(update={"num_replicas": 1}),
        "http": HttpConfig(port=http_port),
        "access": access,
    }
    return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def app(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("keys")
    files = {"keys_file": KEY, "admin_keys_file": ADMIN_KEY}
    for name, key in files.items():
        (folder / name).write_text(f"{key}\n", encoding="utf-8")
    access = AccessConfig.model_validate({name: str(folder / name) for name in files})
    config = with_drafts_ahead(load_config(CONFIG), ray_head.http_port, access)
    served = Served(config, ray_head.url)
    with cluster.running(config, address=ray_head.address):
        served.wait_until_drafting()
        yield served
        served.client.close()


@pytest.fixture
def asked_for_a_key(app: Served, tmp_path: Path) -> Iterator[Browser]:
    """Opened, and the dialog for the key is open too."""
    with browser(tmp_path) as opened:
        opened.size(*DESKTOP)
        opened.prefer("light")
        opened.open(app.url)
        opened.wait("document.querySelector('#key-dialog').open")
        yield opened
        faults = [each for each in opened.complaints() if "status of 401" not in each]
        assert faults == [], "no error of a script, and nothing that the page's policy forbids"


@pytest.fixture
def page(asked_for_a_key: Browser) -> Browser:
    """With an admin key, and both models to choose from."""
    asked_for_a_key.press(ADMIN_KEY + ENTER)
    asked_for_a_key.wait("document.querySelectorAll('#model option').length === 2")
    return asked_for_a_key


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, for this test run only."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which axe-core comes from")
    done = subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm has no {AXE} here: {done.stderr.strip()[-200:]}")
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


def keep(page: Browser, tmp_path: Path, name: str) -> None:
    """A picture, kept where the environment says so."""
    folder = os.environ.get("DRAFTPOOL_PICTURES")
    file = (Path(folder) if folder else tmp_path) / f"{name}.png"
    page.picture(file)
    assert 5_000 < file.stat().st_size <= MOST_BYTES


def choose(page: Browser, element: str, value: str) -> None:
    script = "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
    page.run(f"{script} one.dispatchEvent(new Event('change'))", element, value)


def ask(page: Browser, lines: tuple[str, ...] = LINES, beside: str = "", num_tokens: int = 80) -> None:
    """By keys, from the prompt on."""
    choose(page, "beside", beside)
    choose(page, "tokens", str(num_tokens))
    page.run("document.querySelector('#prompt').focus()")
    page.press(lines[0])
    for line in lines[1:]:
        page.press(ENTER, held=SHIFT)
        page.press(line)
    page.press(ENTER)
    page.wait(f"document.querySelector('.answer') && {DONE}")


def faults(page: Browser, axe: str) -> list[str]:
    """What axe finds that is serious or worse."""
    page.run(axe)
    found: list[dict[str, Any]] = page.run_async(
        "const done = arguments[0]; axe.run(document).then((told) => done(told.violations))"
    )
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in SERIOUS]


def test_an_answer_shows_where_each_token_came_from_and_what_else_could_have_stood_there(page: Browser) -> None:
    ask(page, num_tokens=128)
    sources = page.run(f"return {SOURCES}")
    assert len(sources) == 128 or page.run("return document.querySelector('.end') !== null")
    assert 0 in sources
    assert {abs(source) for source in sources} & {2, 4, 6}, "drafted for and accepted"
    colours = page.run(
        f"const told = {SOURCES}; const tokens = [...document.querySelectorAll('.token')];"
        "return told.map((source, at) => [Math.abs(source), getComputedStyle(tokens[at]).backgroundColor])"
    )
    assert len({colour for _, colour in colours}) == len({exit_ for exit_, _ in colours}), "an exit, a colour"
    page.point(".token:nth-child(8)")
    page.wait("!document.querySelector('#inspector').hidden")
    told = page.text("#inspector")
    assert "picked by the target itself" in told or "at exit" in told
    assert told.count("%") >= 5


def test_the_same_model_with_and_without_drafts_writes_the_same_and_both_speeds_are_told(
    page: Browser, tmp_path: Path
) -> None:
    ask(page, beside="off")
    verdict = page.text(".verdict")
    assert "tokens are the same" in verdict
    assert "with drafts and" in verdict
    assert verdict.endswith("tokens are the same.")
    plain = page.run(
        "return [...document.querySelectorAll('.answer:nth-child(2) .token')].map((t) => t.dataset.source)"
    )
    assert set(plain) == {"0"}
    page.wait("document.querySelector('#targets').innerText.includes('in the chat, without')")
    assert "rounds with drafts" in page.text("#targets")
    keep(page, tmp_path, "light")


def test_two_models_answer_side_by_side_and_the_live_view_tells_of_rounds_and_pool(
    page: Browser, tmp_path: Path
) -> None:
    page.prefer("dark")
    ask(page, beside="model small")
    assert page.run("return [...document.querySelectorAll('.answer h3')].map((head) => head.innerText)") == [
        "large",
        "small",
    ]
    page.wait("document.querySelectorAll('.timeline .slice').length > 8")
    live = page.text("#live")
    for words in (
        "Last rounds",
        "large",
        "small",
        "Draft pool",
        "Drafted tokens that were accepted",
        "busy in the rounds",
    ):
        assert words in live
    page.point(".token:nth-child(12)")
    keep(page, tmp_path, "dark")
    page.run("document.querySelector('#timeline details').open = true")
    page.wait("document.querySelectorAll('#timeline tbody tr').length > 3")
    assert page.run("return document.querySelector('#timeline .timeline').getAttribute('aria-label')").startswith(
        "Time line of"
    )


def test_the_table_of_rounds_has_the_whole_mode_of_each(asked_for_a_key: Browser) -> None:
    """Of rounds as api/trace.py names them."""
    record: dict[str, Any] = {"ts": 0, "end": 1500, "depth": 4, "proposed": [2], "accepted": [1]}
    rounds = [record | {"name": f"round {number} {mode}"} for number, mode in enumerate(Mode)]
    cells = asked_for_a_key.run_async(
        "const [rounds, done] = arguments; import('/page/timeline.js').then(({ Timeline }) => {"
        "const one = new Timeline(); one.draw([{ name: 'large', shown: [], rounds }]);"
        "done([...one.element.querySelectorAll('td:nth-child(3)')].map((cell) => cell.textContent)); })",
        rounds,
    )
    assert cells == [mode.value for mode in Mode]


def test_a_prompt_is_sent_and_its_answer_read_with_the_keyboard_alone(page: Browser) -> None:
    page.run("document.activeElement.blur()")
    page.tab_to("prompt")
    page.press("import os" + ENTER)
    page.wait(DONE)
    assert page.focused() == "prompt", "ready for the next one"
    page.wait("document.querySelector('#said').innerText.includes('answered with')")
    page.run("document.activeElement.blur()")
    page.tab_to(".tokens", most=60)
    page.press(RIGHT + RIGHT)
    assert page.run("return document.querySelectorAll('.token.current').length") == 1
    assert "%" in page.text("#said")
    page.press(END)
    assert page.run(
        "return document.querySelector('.token.current') === [...document.querySelectorAll('.token')].at(-1)"
    )


def test_a_phone_shows_one_thing_at_a_time_and_nothing_wider_than_itself(page: Browser, tmp_path: Path) -> None:
    page.size(*PHONE)
    ask(page, beside="model small")
    assert page.run("return document.querySelector('#live').offsetParent === null")
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    keep(page, tmp_path, "phone")
    ask(page)
    page.run("document.querySelector('[data-shows=live]').click()")
    page.wait("document.querySelectorAll('.timeline .slice').length > 8")
    assert page.run("return document.querySelector('#chat').offsetParent === null")
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    keep(page, tmp_path, "timeline")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_before_an_answer_after_it_and_in_the_dialog(
    page: Browser, axe: str, scheme: str
) -> None:
    page.prefer(scheme)
    assert faults(page, axe) == []
    ask(page, beside="off", num_tokens=32)
    page.wait("document.querySelectorAll('.timeline .slice').length > 8")
    page.point(".token:nth-child(3)")
    assert faults(page, axe) == []
    page.run("document.querySelector('#open-key').click()")
    assert faults(page, axe) == []
    page.run("document.querySelector('#close-key').click()")
    page.size(*PHONE)
    assert faults(page, axe) == []


def test_with_a_callers_key_the_chat_works_and_the_live_view_says_what_it_lacks(asked_for_a_key: Browser) -> None:
    page = asked_for_a_key
    page.press("a-key-of-nobody-here" + ENTER)
    page.wait("document.querySelector('#key-dialog').open")
    page.wait("document.querySelector('#key-why').innerText.includes('none of this server')")
    page.run("document.querySelector('#key').value = ''; document.querySelector('#key').focus()")
    page.press(KEY + ENTER)
    page.wait("document.querySelectorAll('#model option').length === 2")
    page.wait("document.querySelector('#lacking').innerText.includes('admin key')")
    ask(page, num_tokens=8)
    assert page.run("return document.querySelectorAll('.token').length") == 8
    assert page.run("return JSON.stringify(localStorage).includes('key-of')") is False, "a key is of this tab alone"


def test_what_a_model_or_a_person_writes_is_text_and_never_markup(page: Browser) -> None:
    ask(page, ("<img src=x onerror=alert(1)><b>bold</b>",), num_tokens=16)
    assert page.text(".asked") == "<img src=x onerror=alert(1)><b>bold</b>"
    assert page.run("return document.querySelectorAll('#turns img, #turns b').length") == 0
