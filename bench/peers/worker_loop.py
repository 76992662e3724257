"""What the workers of peers have in common: one JSON command a line on stdin, one JSON answer a line on stdout.

Runs in a peer's own environment, so it imports the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Operation = Callable[[dict[str, Any]], dict[str, Any]]


def answer_commands(operations: Mapping[str, Operation]) -> None:
    """Until stdin ends. Answers leave through a copy of stdout; whatever the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = operations[command["op"]](command)
        except (OSError, RuntimeError, ValueError) as error:
            answer = {"error": (str(error).strip() or repr(error)).splitlines()[-1]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
