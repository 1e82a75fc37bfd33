"""Side-by-side measurements, one module per topic; they write their results to `results/`.

Run one with `python -m benchmarks.MODULE`. docs/benchmarks.md has the figures. Benchmarks can import every room.
"""

import os

# libgomp reads these when torch is imported: one thread, which sleeps while it waits, as in a worker.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
