"""The process in which api/rendering.py renders: `python -P render_worker.py SOCKET MEMORY_BYTES CPU_S`.

A template is code from a checkpoint. Jinja's sandbox keeps it from Python's own objects, but not from looping for ever
or from making a text of many gigabytes. This process has no environment, a limit of memory, and an alarm of the kernel
that ends it when a text has taken its time. It imports nothing of ours, and it ends when its socket does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

SIZE = struct.Struct(">Q")  # before every message


def main(descriptor: str, memory_bytes: str, cpu_s: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all
    confine(int(memory_bytes))
    with socket.socket(fileno=int(descriptor)) as connection, connection.makefile("rb") as received:
        while len(size := received.read(SIZE.size)) == SIZE.size:
            job = json.loads(received.read(*SIZE.unpack(size)))
            content = json.dumps(reply(job, float(cpu_s)), ensure_ascii=False).encode()
            connection.sendall(SIZE.pack(len(content)) + content)


def confine(memory_bytes: int) -> None:
    """memory_bytes: beyond what the process has now."""
    with open("/proc/self/statm", encoding="ascii") as counts:
        now = int(counts.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reply(job: Any, cpu_s: float) -> dict[str, Any]:
    """The text, or why there is none."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        texts: Any = render_jinja_template(**job["arguments"])[0]
        text = str(texts[0])
        num_bytes = len(text.encode())
        return {"text": text} if num_bytes <= job["most_bytes"] else {"num_bytes": num_bytes}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}".encode(errors="replace").decode()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
