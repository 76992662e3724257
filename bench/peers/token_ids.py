"""Question: are our token ids of GGUF files llama.cpp's, on lines of source code, questions and generated text?

    python -m bench.peers.token_ids FILE.gguf ... --questions QUESTIONS.jsonl

Special tokens in a text count as such, and BOS is as the file says.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.arguments import plain_parser
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
    return real + [generated(rng) for _ in range(count - len(real))]


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
    parser = plain_parser(__doc__, "token_ids.json")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    drawn, place = lines(args.questions, args.lines, args.seed), machine.describe()
    texts = [line for line in drawn if LEFT_OUT not in line]
    found = {file.name: differences(file, texts) for file in args.files}
    rows = [(name, len(texts), sum(map(len, texts)), len(own)) for name, own in found.items()]
    num_left_out = len(drawn) - len(texts)
    note = f"{num_left_out} of {len(drawn)} lines hold {LEFT_OUT}, which llama.cpp reads otherwise: left out."
    table = machine.markdown(("file", "lines", "characters", "lines that differ"), rows, note, machine.footer(place))
    report = {"machine": place, "lines": len(texts), "differ": {name: own[:SHOWN] for name, own in found.items()}}
    machine.publish(args.out, report, table)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
