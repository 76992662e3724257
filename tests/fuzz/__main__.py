"""A million hostile messages: `python -m tests.fuzz --messages 1000000`.

Most go through decoders and worker in this thread, every 50th over a real socket to a real server. Ends with an
assertion where a thread ends, memory grows, bookkeeping contradicts itself, or a victim's draft is not its own.
"""

from __future__ import annotations

import argparse
import sys
import time

import psutil

from tests.fuzz.game import Bench
from tests.fuzz.messages import Messages
from tests.fuzz.sockets import over_sockets

ROUND_EVERY, TELL_EVERY = 500, 100_000
MOST_GROWTH_MB = 32.0
SHARE = 50  # one of so many goes over a socket


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    in_thread(args.messages - args.messages // SHARE, args.seed)
    told = over_sockets(args.messages // SHARE, args.seed)
    say(f"{told}; RSS {rss_mb():.1f} MB; {time.monotonic() - began:.0f} s in all")
    return 0


def in_thread(num_messages: int, seed: int) -> None:
    bench, messages, began = Bench(seed), Messages(seed), time.monotonic()
    warm = 0.0
    for number in range(1, num_messages + 1):
        bench.to_target(messages.to_target()) if number % 4 == 0 else bench.to_pool(messages.to_pool())
        if number % ROUND_EVERY == 0:
            bench.round()
        if number == max(num_messages // 10, 1):
            warm = rss_mb()
        if number % TELL_EVERY == 0 or number == num_messages:
            say(
                f"{number} messages, {bench.num_taken} taken, {bench.num_refused} refused, "
                f"{bench.victim.num_right} of the victim's drafts right, RSS {rss_mb():.1f} MB "
                f"({rss_mb() - warm:+.1f} since the first tenth), {time.monotonic() - began:.0f} s"
            )
    say(f"{bench.worker.stats()}")
    assert rss_mb() - warm < MOST_GROWTH_MB, "memory grows"


def rss_mb() -> float:
    return float(psutil.Process().memory_info().rss) / (1 << 20)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
