"""The training loop and its parts."""

import os

# PyTorch's allocator for the CPU asks Linux for huge pages: a fifth less memory at the peak, and fewer page faults
# (docs/benchmarks.md). It reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
