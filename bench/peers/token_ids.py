"""Compares our token ids of GGUF files with llama.cpp's, on lines of source code, questions and generated text.

    python -m bench.peers.token_ids FILE.gguf ... --questions QUESTIONS.jsonl

Special tokens in a text count as such, and BOS is as the file says.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from bench.peers.llamacpp import llama_cpp
from model.files import resolve
from model.tokenizer import load_tokenizer

ALPHABETS = (
    "0123456789",
    "0123456789.,+-*/=() ",
    " \t\n\r\u00a0\u3000\u2003",
    "abcXYZ 'sStTmMdDlLvVrReE",
    "_(){}[]<>:;,.!?\"'`~@#$%^&*|\\/ ",
    "中文字漢字日本語ひらがなカタカナ한국어。、\uff01\uff1f ",
    "😀😂🤖👩‍👩‍👧🇩🇪❤️✈️ ",
    "éàüßñçøåžœæÆ Ελληνικά русский עברית العربية हिन्दी ไทย ",
    "e\u0301a\u0308n\u0303 ½²³ⅣⅫ①٣४๓∑√∞€£¥←→ǅǈ ",
)
LEFT_OUT = "</s>"  # llama.cpp takes it for a control token of Qwen, whose file says that it is text
SHOWN = 5


def lines(questions: Path, count: int, seed: int) -> list[str]:
    """Half of them code and questions, half generated."""
    rng = random.Random(seed)
    code = [line for path in sources(rng) for line in path.read_text("utf-8", errors="ignore").splitlines() if line]
    asked = [turn for line in questions.read_text("utf-8").splitlines() for turn in json.loads(line)["turns"]]
    real = rng.sample(code, count * 3 // 8) + rng.sample(asked, min(len(asked), count // 8))
    return [line for line in real + [generated(rng) for _ in range(count - len(real))] if LEFT_OUT not in line]


def sources(rng: random.Random) -> list[Path]:
    return rng.sample(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")), 60)


def generated(rng: random.Random) -> str:
    """Runs of a few alphabets, now and then with a token that a chat template writes."""
    runs = ["".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 12))) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.1:
        runs.insert(rng.randint(0, len(runs)), rng.choice(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>"]))
    return "".join(runs)


def differences(file: Path, texts: Sequence[str]) -> list[str]:
    """Raises bench.cells.Unavailable."""
    directory = resolve(str(file))
    tokenizer = load_tokenizer(directory)
    with llama_cpp(directory) as peer:
        pairs = [(text, tokenizer.encode(text), peer.token_ids(text)) for text in texts]
    return [f"{text!r}\n  ours   {ours}\n  theirs {theirs}" for text, ours, theirs in pairs if ours != theirs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts, failed = lines(args.questions, args.lines, args.seed), 0
    for file in args.files:
        found = differences(file, texts)
        failed += len(found)
        sys.stdout.write(f"{file.name}: {len(found)} of {len(texts)} lines differ\n" + "\n".join(found[:SHOWN]) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
