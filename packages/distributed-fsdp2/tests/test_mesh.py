"""How sizes are filled in, and which ones are refused."""

import pytest
import torch
from automodel import InputError
from automodel.notices import strictness
from automodel_distributed_fsdp2.fsdp2 import FSDP2Manager
from automodel_distributed_fsdp2.mesh import Sizes, sizes


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, Sizes(replicate=1, shard=8, cp=1, tp=1)),
        ({"tp": 2}, Sizes(replicate=1, shard=4, cp=1, tp=2)),
        ({"tp": 2, "cp": 2, "replicate": 2}, Sizes(replicate=2, shard=1, cp=2, tp=2)),
        ({"dp_size": 4, "cp": 2}, Sizes(replicate=1, shard=4, cp=2, tp=1)),
    ],
)
def test_data_parallelism_takes_what_is_left(given, found):
    assert sizes(8, **{"dp_size": None, "replicate": 1, "cp": 1, "tp": 1, **given}) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dp_size": 3}, "dp_size 3 x tp_size 1 x cp_size 1 is not the 8 processes of this run; leave dp_size out"),
        ({"tp": 3}, "tp_size 3 x cp_size 1 does not divide the 8 processes"),
        ({"replicate": 5}, "dp_replicate_size 5 does not divide the 8 processes of data parallelism"),
        ({"cp": 0}, "cp_size must be at least 1, not 0"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_number_of_processes_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        sizes(8, **{"dp_size": None, "replicate": 1, "cp": 1, "tp": 1, **given})


def test_in_one_process_sizes_are_checked_and_what_has_no_effect_is_told(capsys):
    with pytest.raises(InputError, match="tp_size 8 x cp_size 1 does not divide the 1 processes"):
        FSDP2Manager(torch.device("cpu"), tp_size=8)
    with strictness(False):
        FSDP2Manager(torch.device("cpu"), mixed_precision=True)
    assert "note: distributed.mixed_precision has no effect in one process" in capsys.readouterr().err
