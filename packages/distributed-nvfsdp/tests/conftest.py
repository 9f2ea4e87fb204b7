"""What the tests share: the stand-ins' provider in one process, and runs in many."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # runs.py and cuda_stand_ins.py, which worker.py imports as well

import pytest
from automodel.notices import strictness


@pytest.fixture(autouse=True)
def notices_said_anew():
    with strictness(False):
        yield
