"""Who may begin a link: both ends hold the secret, whatever the bytes between them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from ray import cloudpickle

from link.handshake import MAGIC, Handshake
from link.secret import FILE, NUM_BYTES, VARIABLE, Secret
from protocol.errors import ConfigError

SECRET = Secret(b"0123456789abcdef")

Change = Callable[[str, bytes], bytes]


def unchanged(who: str, data: bytes) -> bytes:
    return data


def shaken(target: Handshake, pool: Handshake, rng: random.Random, change: Change = unchanged) -> None:
    """Carries bytes both ways, cut at random, until nothing moves. change: what becomes of those on their way."""
    waiting = {"pool": bytearray(), "target": bytearray()}
    ends = {"target": (target, "pool"), "pool": (pool, "target")}
    moved = True
    while moved:
        moved = False
        for who, (end, other) in ends.items():
            waiting[other] += change(who, end.due())
            cut = rng.randint(1, 40)
            chunk = bytes(waiting[who][: min(cut, end.missing)])
            del waiting[who][: len(chunk)]
            if chunk:
                end.feed(chunk)
            moved |= bool(chunk or waiting["pool"] or waiting["target"]) and not (target.done and pool.done)


def feed_all(end: Handshake, data: bytes) -> None:
    while data:
        size = end.missing
        end.feed(data[:size])
        data = data[size:]


@pytest.mark.parametrize("seed", range(20))
def test_two_ends_of_one_secret_agree_on_the_name_however_the_bytes_are_cut(seed: int) -> None:
    target, pool = Handshake(SECRET, "large-1"), Handshake(SECRET)
    shaken(target, pool, random.Random(seed))
    assert target.done
    assert pool.done
    assert pool.name == "large-1"


def test_a_target_with_another_secret_is_refused_and_the_pool_proves_nothing_to_it() -> None:
    sent: list[bytes] = []

    def watch(who: str, data: bytes) -> bytes:
        if who == "pool" and data:
            sent.append(data)
        return data

    target, pool = Handshake(Secret.fresh(), "large-1"), Handshake(SECRET)
    with pytest.raises(ValueError, match="does not hold this replica's secret"):
        shaken(target, pool, random.Random(1), watch)
    assert not pool.done
    assert sum(map(len, sent)) == len(MAGIC) + NUM_BYTES


def test_a_pool_with_another_secret_is_refused() -> None:
    """One that takes any target."""

    class Trusting(Secret):
        def proves(self, proof: bytes, *parts: bytes) -> bool:
            return True

    target, pool = Handshake(SECRET, "large-1"), Handshake(Trusting(b"another secret..."))
    with pytest.raises(ValueError, match="does not hold this replica's secret"):
        shaken(target, pool, random.Random(1))
    assert not target.done


def test_what_was_proved_once_is_of_no_use_again() -> None:
    heard = bytearray()

    def listen(who: str, data: bytes) -> bytes:
        if who == "target":
            heard.extend(data)
        return data

    shaken(Handshake(SECRET, "large-1"), Handshake(SECRET), random.Random(1), listen)
    pool = Handshake(SECRET)
    with pytest.raises(ValueError, match="secret"):
        feed_all(pool, bytes(heard))


def test_a_proof_that_is_sent_back_is_none() -> None:
    """Neither end takes its own nonce and proof for those of the other."""
    target = Handshake(SECRET, "large-1")
    said = target.due()
    target.feed(said[: len(MAGIC)])
    target.feed(said[len(MAGIC) :][:NUM_BYTES])
    with pytest.raises(ValueError, match="secret"):
        target.feed(target.due())


@pytest.mark.parametrize("name", ["", "a b", "a#1", "x" * 129, "a\n", "naïve"])
def test_a_name_that_would_not_go_into_a_log_is_refused_at_both_ends(name: str) -> None:
    with pytest.raises(ValueError, match="is no name for a link"):
        Handshake(SECRET, name)
    pool = Handshake(SECRET)
    said = name.encode()[:255]
    with pytest.raises(ValueError, match="is no name for a link"):
        feed_all(pool, MAGIC + bytes(NUM_BYTES) + bytes([len(said)]) + (said or b"\0"))


def test_another_version_and_a_foreign_program_are_known_by_their_first_bytes() -> None:
    for first in (b"draftpool link 2\n", b"GET / HTTP/1.1\r\n\r"):
        with pytest.raises(ValueError, match="deploy both sides from one version"):
            Handshake(SECRET).feed(first[: len(MAGIC)])


def test_a_secret_is_in_no_repr_and_survives_the_way_through_serve() -> None:
    secret = Secret(b"correct horse battery")
    assert "horse" not in f"{secret!r} {secret} {[secret]} {vars(type(secret))}"
    for other in (cloudpickle.loads(cloudpickle.dumps(secret)), copy.deepcopy(secret)):
        assert other.proof(b"x") == secret.proof(b"x")


def test_parts_of_a_proof_do_not_run_into_each_other() -> None:
    assert SECRET.proof(b"ab", b"c") != SECRET.proof(b"a", b"bc")


def test_a_secret_comes_from_a_file_or_a_variable_else_it_is_fresh(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef\n")
    assert Secret.of({FILE: str(path)}).proof(b"x") == SECRET.proof(b"x")
    assert Secret.of({VARIABLE: "0123456789abcdef"}).proof(b"x") == SECRET.proof(b"x")
    assert Secret.of({}).proof(b"x") != Secret.of({}).proof(b"x")
    with pytest.raises(ConfigError, match=f"cannot read .*, which {FILE} names"):
        Secret.of({FILE: str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="7 bytes can be guessed") as refusal:
        Secret.of({VARIABLE: "hunter2"})
    assert "hunter2" not in str(refusal.value)
