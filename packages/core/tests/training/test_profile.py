"""Where profiled steps spend their time: from torch's events to the rows of the table."""

from types import SimpleNamespace

import pytest
import torch
from automodel.parallel.ddp import DataParallel
from automodel.training.collate import pad
from automodel.training.loss import cross_entropy
from automodel.training.matmul_peak import MatmulPeak, measure_matmul_peak
from automodel.training.options import TrainingOptions
from automodel.training.profile import profiled_steps
from automodel.training.profile_events import (
    ATTENTION,
    COMMUNICATION,
    DATA,
    LOSS,
    MATRIX_PRODUCTS,
    OPTIMIZER,
    OTHER,
    PURPOSES,
    PYTHON,
    Event,
    Work,
    read_events,
    work_of_steps,
)
from automodel.training.profile_table import Measured, allocated_mb, operator_rows, summary, time_rows
from automodel.training.step import train_step
from tiny import TinyLM, rows
from torch.profiler import ProfilerActivity, profile, record_function

CPU = torch.device("cpu")
STEP = Event("automodel.step", 0, 100, is_operator=False)
NODE = "autograd::engine::evaluate_function: "


def purposes(*events):
    return {work.name: work.purpose for work in work_of_steps([STEP, *events])}


def test_an_operator_is_for_what_the_range_around_it_is_for_else_for_what_its_name_says():
    loss = Event("automodel.loss", 10, 20, parent=STEP, is_operator=False)
    optimizer = Event("automodel.optimizer", 30, 40, parent=STEP, is_operator=False)
    attention = Event("aten::scaled_dot_product_attention", 50, 60, parent=STEP)
    assert purposes(
        Event("aten::addmm", 1, 2, parent=STEP),
        Event("aten::silu", 2, 3, parent=STEP),
        loss,
        Event("aten::_log_softmax", 11, 12, parent=loss),
        Event("aten::mm", 12, 13, parent=loss),
        optimizer,
        Event("aten::mul_", 31, 32, parent=optimizer),
        Event("c10d::allreduce_", 32, 33, parent=optimizer),
        attention,
        Event("aten::bmm", 51, 52, parent=attention),
        Event("aten::_softmax", 61, 62, parent=STEP),
    ) == {
        "aten::addmm": MATRIX_PRODUCTS,
        "aten::silu": OTHER,
        "aten::_log_softmax": LOSS,
        "aten::mm": LOSS,
        "aten::mul_": OPTIMIZER,
        "c10d::allreduce_": COMMUNICATION,
        "aten::scaled_dot_product_attention": ATTENTION,
        "aten::bmm": ATTENTION,
        "aten::_softmax": ATTENTION,
    }


def test_the_backward_of_the_output_layer_is_told_from_that_of_other_layers_on_whichever_thread_it_runs():
    layer = Event("automodel.output_layer", 10, 20, parent=STEP, is_operator=False)
    of_layer = Event(f"{NODE}MmBackward0", 50, 55, thread=2, forward_thread=1, sequence_nr=8, is_operator=False)
    of_other = Event(f"{NODE}MmBackward0", 60, 65, thread=2, forward_thread=1, sequence_nr=7, is_operator=False)
    found = work_of_steps(
        [
            STEP,
            Event("aten::linear", 5, 6, parent=STEP, sequence_nr=7),
            layer,
            Event("aten::detach", 11, 12, parent=layer, sequence_nr=8),
            Event("aten::linear", 12, 13, parent=layer, sequence_nr=8),
            of_layer,
            Event("aten::mm", 51, 52, 1.0, parent=of_layer, thread=2),
            of_other,
            Event("aten::mm", 61, 62, 2.0, parent=of_other, thread=2),
        ]
    )
    assert {(work.self_us, work.purpose) for work in found if work.name == "aten::mm"} == {
        (1.0, LOSS),
        (2.0, MATRIX_PRODUCTS),
    }


def test_what_runs_outside_the_steps_or_on_other_threads_does_not_count():
    assert purposes(Event("aten::stack", 101, 102), Event("aten::copy_", 5, 6, thread=9)) == {}


def test_collectives_on_other_threads_count_only_while_no_operator_runs():
    found = work_of_steps(
        [
            STEP,
            Event("aten::mm", 10, 20, parent=STEP),
            Event("gloo:all_reduce", 15, 35, thread=7),
            Event("gloo:all_reduce", 16, 36, thread=8),
            Event("aten::add", 30, 32, parent=STEP),
        ]
    )
    assert [work.self_us for work in found if work.purpose == COMMUNICATION] == [13.0, 1.0]


def test_the_rows_are_the_whole_step_and_their_printed_shares_add_up_to_100():
    work = [Work("aten::mm", MATRIX_PRODUCTS, 100.0), Work("aten::add", OTHER, 100.0), Work("x", ATTENTION, 100.0)]
    found = {row.name: row for row in time_rows(work, step_s=700e-6, data_s=100e-6, num_steps=2)}
    assert list(found) == list(PURPOSES)
    assert found[DATA].ms == pytest.approx(0.05)
    assert found[PYTHON].ms == pytest.approx(0.15)
    assert sum(row.ms for row in found.values()) == pytest.approx(0.35)
    assert sum(round(row.percent * 10) for row in found.values()) == 1000


def test_collectives_that_ran_beside_other_operators_are_not_counted_twice():
    work = [Work("aten::mm", MATRIX_PRODUCTS, 900.0), Work("nccl", COMMUNICATION, 300.0)]
    found = {row.name: row.ms for row in time_rows(work, step_s=1e-3, data_s=0.0, num_steps=1)}
    assert found[COMMUNICATION] == pytest.approx(0.1)
    assert found[PYTHON] == 0
    assert sum(found.values()) == pytest.approx(1.0)


def test_the_operators_with_most_time_of_their_own_come_first_and_memory_goes_to_who_wanted_it():
    around = Event("aten::index_select", 5, 9, 1.0, parent=STEP)
    work = work_of_steps([STEP, around, Event("aten::empty", 6, 7, 2.0, 4_000_000, parent=around)])
    assert [(row.name, row.calls) for row in operator_rows(work, 100e-6, 1)] == [
        ("aten::empty", 1),
        ("aten::index_select", 1),
    ]
    assert next(iter(allocated_mb(work, 2).items())) == ("aten::index_select", 2.0)


@pytest.mark.parametrize(
    ("done", "num_steps", "micro_batches", "interruptions", "expected"),
    [
        (0, 100, 1, (None, None), (3, 7)),
        (40, 100, 1, (None, None), (43, 47)),
        (0, None, 1, (None, None), (3, 7)),
        (0, 5, 1, (None, None), (3, 5)),
        (0, 2, 1, (None, None), (2, 2)),
        (0, 1, 1, (None, None), (1, 1)),
        (0, 100, 20, (None, None), (3, 4)),
        (0, 100, 64, (None, None), (3, 3)),
        (0, 100, 1, (4, None), (3, 4)),
        (0, 100, 1, (10, 1), (3, 3)),
    ],
)
def test_a_few_steps_after_the_first_are_profiled_up_to_a_validation(
    done, num_steps, micro_batches, interruptions, expected
):
    assert profiled_steps(done, num_steps, micro_batches, interruptions) == expected


@pytest.mark.parametrize(
    ("smoothing", "operators"),
    [(0.1, {"aten::_log_softmax", "aten::_log_softmax_backward_data"}), (0.0, {"aten::exp_"})],
    ids=["torch's loss", "our own"],
)
def test_torchs_own_events_are_read_for_what_they_are(smoothing, operators):
    module = TinyLM(vocabulary=64)
    optimizer = torch.optim.AdamW(module.parameters())
    batch = pad(SimpleNamespace(pad_token_id=0))(rows(4, vocabulary=64))
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        record_function("automodel.step"),
    ):
        loss_fn = cross_entropy(label_smoothing=smoothing)
        train_step(module, [batch], loss_fn, optimizer, TrainingOptions(), CPU, DataParallel(CPU))
    found = {(work.name, work.purpose) for work in work_of_steps(read_events(profiler.events(), False))}
    assert {(name, LOSS) for name in operators} <= found
    assert ("aten::addmm", MATRIX_PRODUCTS) in found
    assert {purpose for name, purpose in found if name == "aten::linalg_vector_norm"} == {OPTIMIZER}


def test_the_peak_is_measured_fast_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    peak = measure_matmul_peak(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert peak.flops > 1e8
    assert f"{peak.size} x {peak.size} float32" in str(peak)


def test_the_share_of_the_peak_is_that_of_one_process():
    peak = MatmulPeak(1e9, 1024, torch.bfloat16, CPU, 1)
    measured = Measured("title", 2, 2.0, 0.0, 800, 1e6, 4, 1.0, "this process", peak)
    assert "MFU 10.0%: 0.1 GFLOP/s of the model a process" in summary([], measured)
