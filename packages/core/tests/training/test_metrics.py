import subprocess
import sys

import pytest
import torch
from automodel import RunError
from automodel.interfaces import Run
from automodel.training.metrics import MetricsFile, peak_memory_mb


def test_the_peak_of_memory_is_of_this_process_and_not_of_the_one_that_started_it():
    held = torch.ones(2_000_000_000, dtype=torch.uint8)
    code = "import torch; from automodel.training.metrics import peak_memory_mb as p; print(p(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < held.nbytes / 1e6 < peak_memory_mb(torch.device("cpu"))


def test_a_full_disk_is_told_once_by_the_name_of_the_file(tmp_path):
    (tmp_path / "metrics.tmp").symlink_to("/dev/full")
    file = MetricsFile()
    file.fit_start(run=Run("model", tmp_path, {}))
    with pytest.raises(RunError, match=r"could not write .*metrics.jsonl: No space left"):
        file.step_end(step=1, metrics={"loss": 1.0})
    file.fit_end()
