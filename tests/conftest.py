"""One torch thread per test process: OpenMP threads that spin stall by 10x and more when they share two cores.

A Ray that tests start asks for a token, as Ray has it by default; those that attach to it must be told so.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_AUTH_MODE", "token")
