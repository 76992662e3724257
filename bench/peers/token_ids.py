"""Compares our token ids of GGUF files with llama.cpp's, on lines of source code, questions and generated text.

    python -m bench.peers.token_ids FILE.gguf ... --peer PYTHON --questions QUESTIONS.jsonl

PYTHON: an interpreter with the package xllamacpp. Special tokens in a text count as such, and BOS is as the file says.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from model.files import resolve
from model.tokenizer import load_tokenizer

SERVER = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.warmup = sys.argv[1], 64, 1, False
parameters.cpuparams.n_threads = 1
server = xllamacpp.Server(parameters)
print("at", server.listening_address, flush=True)
sys.stdin.read()
"""
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


@contextmanager
def llama_cpp(python: Path, file: Path) -> Iterator[str]:
    """The address of a server with this file."""
    process = subprocess.Popen(
        [python, "-c", SERVER, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("at "))
    finally:
        process.communicate()


def their_ids(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        ids: list[int] = json.load(reply)["tokens"]
    return ids


def differences(file: Path, python: Path, texts: Sequence[str]) -> list[str]:
    tokenizer = load_tokenizer(resolve(str(file)))
    with llama_cpp(python, file) as address:
        pairs = [(text, tokenizer.encode(text), their_ids(address, text)) for text in texts]
    return [f"{text!r}\n  ours   {ours}\n  theirs {theirs}" for text, ours, theirs in pairs if ours != theirs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts, failed = lines(args.questions, args.lines, args.seed), 0
    for file in args.files:
        found = differences(file, args.peer, texts)
        failed += len(found)
        sys.stdout.write(f"{file.name}: {len(found)} of {len(texts)} lines differ\n" + "\n".join(found[:SHOWN]) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
