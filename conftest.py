"""What every test of this repository runs under: no network, and one thread a worker, as pytest starts two."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
