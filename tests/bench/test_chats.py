"""Chats on a tiny target: what was said before is adopted, and read anew where the target is made to forget."""

import json
from argparse import Namespace
from pathlib import Path

from bench.chats import PAGE, run
from targets.scheduler import Scheduler
from tests.model.families import make_checkpoint


def test_kept_chats_adopt_what_was_said_and_the_others_read_it_again(tmp_path: Path, capsys, monkeypatch) -> None:
    adopted = []
    whole = Scheduler.admit

    def admit(self: Scheduler):
        taken = whole(self)
        adopted.extend((len(sequence.tokens), sequence.computed) for sequence in taken)
        return taken

    monkeypatch.setattr(Scheduler, "admit", admit)
    target = make_checkpoint("llama", tmp_path / "llama", seed=1)
    sizes = {"turns": 3, "question": 20, "answer": 30, "pairs": 2}
    args = Namespace(target=target, threads=1, weights="stored", out=tmp_path / "chats.json", **sizes)
    assert run(args) == 0
    warm_up, *chats = [adopted[at : at + 3] for at in range(0, len(adopted), 3)]
    assert [length for length, _ in warm_up] == [21, 71, 121]
    for chat, keeps in zip(chats, [True, False] * 2, strict=True):
        assert [known for _, known in chat] == ([0, PAGE, 3 * PAGE] if keeps else [0, 0, 0])
    made = json.loads(args.out.read_text())
    assert len(made["pairs"]) == 2
    assert "| 3 | 121 |" in capsys.readouterr().out
