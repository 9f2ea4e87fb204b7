import subprocess
import sys

import torch
from automodel.training.metrics import peak_memory_mb


def test_the_peak_of_memory_is_of_this_process_and_not_of_the_one_that_started_it():
    held = torch.ones(2_000_000_000, dtype=torch.uint8)
    code = "import torch; from automodel.training.metrics import peak_memory_mb as p; print(p(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < held.nbytes / 1e6 < peak_memory_mb(torch.device("cpu"))
