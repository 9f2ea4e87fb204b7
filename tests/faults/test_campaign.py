"""One run of each fault. What hundreds of them show stands in docs/reliability.md."""

import pytest
import torch
from automodel.cli.main import main
from faults.disk import small_disk
from faults.kinds import FAULTS
from faults.processes import Ending
from faults.trial import Trial, run_trial
from faults.verdict import Undisturbed

SEED = 2176  # with which all faults come when there are checkpoints, and soon
SECONDS_TO_START = 8
WITHOUT_DROPOUT = "model.config.attention_dropout=0.0"  # which differs between one process and two


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of one process that nothing happens to."""
    trial = Trial(tmp_path_factory.mktemp("whole") / "trial", [WITHOUT_DROPOUT], None, None)
    with trial.disk, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        torch.set_num_threads(1)
        assert main(trial.words) == 0
    return Undisturbed.of(trial.run, 1, SECONDS_TO_START)


CASES = [
    # what happens to several processes is tested by tests/test_elastic.py too
    pytest.param(number, id=fault.name, marks=pytest.mark.slow if fault.num_processes > 1 else ())
    for number, fault in enumerate(FAULTS)
]


@pytest.mark.parametrize("number", CASES)
def test_a_run_ends_as_if_nothing_had_happened_with(number, tmp_path, capfd, undisturbed):
    def go_on_in_this_process(words):
        """A new one takes seconds to import torch. Alone: on from two processes."""
        alone = words[: words.index("--nproc-per-node")] if "--nproc-per-node" in words else words
        capfd.readouterr()
        return Ending(main([*alone, WITHOUT_DROPOUT]), *capfd.readouterr())

    disk = small_disk(tmp_path / "scratch")
    verdict = run_trial(
        FAULTS[number], number, SEED, tmp_path, [WITHOUT_DROPOUT], undisturbed, disk, again=go_on_in_this_process
    )
    assert not verdict.problems, "\n".join([*verdict.problems, *verdict.told])
