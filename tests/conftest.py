"""One torch thread per test process: OpenMP threads that spin stall by 10x and more when they share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
