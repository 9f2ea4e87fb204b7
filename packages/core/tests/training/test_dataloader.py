import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from automodel import InputError, RunError
from automodel.training.dataloader import DataLoader, MicroBatchSampler
from automodel.training.step_scheduler import Progress, StepScheduler, global_batches
from torch.utils.data import IterableDataset

PROCESSOR = SimpleNamespace(pad_token_id=0)
SAMPLES = [{"input_ids": [index], "labels": [index]} for index in range(1, 24)]


def ids(batch):
    return batch["input_ids"].flatten().tolist()


def loader(dataset=SAMPLES, **options):
    return DataLoader(dataset, PROCESSOR, **{"batch_size": 2, "seed": 3, **options})


def parent(samples):
    return os.getppid()


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledBy(list):
    """Samples, or the word `killed`."""

    def __getitem__(self, index):
        if super().__getitem__(index) == "killed":
            kill_this_process()
        return super().__getitem__(index)


class KillsWhoeverReadsIt:
    def __reduce__(self):
        return kill_this_process, ()


class Disconnected(list):
    def __getitem__(self, index):
        raise ConnectionResetError("the server of the samples")


class Stream(IterableDataset):
    """Counts, and says where it is, as torchdata asks."""

    def __init__(self):
        self.next = 1

    def __iter__(self):
        while self.next < 24:
            value, self.next = self.next, self.next + 1
            yield {"input_ids": [value], "labels": [value]}
        self.next = 1

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_the_order_of_samples_is_independent_of_the_world_size():
    orders = []
    for world_size in (1, 2, 4):
        ranks = [
            MicroBatchSampler(32, 8 // world_size, True, seed=5, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        turns = zip(*(list(rank) for rank in ranks), strict=True)
        orders.append([index for turn in turns for micro_batch in turn for index in micro_batch])
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(32)) != orders[0]


def test_every_epoch_has_its_own_order_and_every_sample_once():
    ours = loader()
    first, second = ([i for batch in ours.micro_batches(epoch) for i in ids(batch)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1, 24))
    assert first != second
    assert first == [i for batch in loader(num_workers=2).micro_batches(0) for i in ids(batch)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_at_its_sample_position(num_workers):
    whole = [ids(batch) for batch in loader().micro_batches(1)]
    assert [ids(batch) for batch in loader(num_workers=num_workers).micro_batches(1, start=6)] == whole[3:]


def test_drop_last_leaves_out_what_fills_no_micro_batch_for_every_process():
    samplers = [MicroBatchSampler(23, 2, False, drop_last=True, rank=rank, world_size=2) for rank in range(2)]
    assert [len(list(sampler)) for sampler in samplers] == [5, 5] == [s.num_micro_batches() for s in samplers]
    assert MicroBatchSampler(23, 2, False).num_micro_batches() == 12 == len(list(MicroBatchSampler(23, 2, False)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_resumes_exactly(num_workers):
    whole = [ids(batch) for batch in loader(Stream(), num_workers=num_workers).micro_batches(0)]
    first = loader(Stream(), num_workers=num_workers)
    batches = first.micro_batches(0)
    seen = [ids(next(batches)) for _ in range(4)]
    state = first.state_dict()
    second = loader(Stream(), num_workers=num_workers)
    second.load_state_dict(state)
    assert seen + [ids(batch) for batch in second.micro_batches(0)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_saved_at_the_end_of_an_epoch_goes_on_with_the_next(num_workers):
    first = loader(Stream(), num_workers=num_workers)
    progress = Progress()
    whole = [[ids(b) for b in step] for step in global_batches(first, progress, 5, 2)]
    first, progress = loader(Stream(), num_workers=num_workers), Progress()
    steps = global_batches(first, progress, 5, 2)
    seen = [[ids(b) for b in next(steps)] for _ in range(3)]  # 12 micro-batches an epoch: the third step is short
    second = loader(Stream(), num_workers=num_workers)
    second.load_state_dict(first.state_dict())
    assert seen + [[ids(b) for b in step] for step in global_batches(second, progress, 5, 2)] == whole


def test_a_stream_saved_with_other_workers_says_so():
    state = loader(Stream()).state_dict()
    with pytest.raises(InputError, match="num_workers: 0"):
        loader(Stream(), num_workers=1).load_state_dict(state)


def test_workers_are_forked_from_a_server_and_not_from_a_process_with_threads():
    [server] = loader(SAMPLES[:2], collate_fn=parent, num_workers=1).micro_batches(0)
    assert server != os.getpid()
    assert "multiprocessing.forkserver" in Path(f"/proc/{server}/cmdline").read_text()


def test_workers_need_no_guard_in_a_script(tmp_path):
    (tmp_path / "script.py").write_text(
        "from types import SimpleNamespace\n"
        "from automodel.training.dataloader import DataLoader\n"
        "rows = [{'input_ids': [1], 'labels': [1]}] * 4\n"
        "loader = DataLoader(rows, SimpleNamespace(pad_token_id=0), num_workers=1)\n"
        "print(len(list(loader.micro_batches(0))))\n"
    )
    script = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (script.stdout, script.stderr) == ("4\n", "")


def test_a_worker_that_hangs_does_not_keep_a_run_from_ending(tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import time\n"
        "class Rows(list):\n"
        "    def __getitem__(self, index):\n"
        "        time.sleep(index * 300)\n"
        "        return {'input_ids': [1], 'labels': [1]}\n"
    )
    (tmp_path / "script.py").write_text(
        "from types import SimpleNamespace\n"
        "from automodel.training.dataloader import DataLoader\n"
        "from sleeper import Rows\n"
        "options = {'sampler': 'sequential', 'num_workers': 1}\n"
        "loader = DataLoader(Rows(range(2)), SimpleNamespace(pad_token_id=0), **options)\n"
        "next(loader.micro_batches(0))\n"
    )
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, timeout=60, check=True)


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}, {"num_workers": 2}], ids=str)
def test_a_worker_that_is_killed_is_told_in_one_message(options):
    batches = loader(KilledBy([*SAMPLES[:8], "killed"]), **{"num_workers": 1, "shuffle": False, **options})
    with pytest.raises(RunError, match=r"a process that loads samples has gone .*num_workers"):
        list(batches.micro_batches(0))


def test_a_worker_that_is_killed_as_it_starts_is_told_in_one_message():
    with pytest.raises(RunError, match="a process that loads samples has gone"):
        list(loader([KillsWhoeverReadsIt(), "x" * 10_000_000], num_workers=1).micro_batches(0))


def test_a_lost_connection_of_the_data_set_itself_is_its_own_error():
    with pytest.raises(ConnectionResetError, match="Caught"):
        list(loader(Disconnected(SAMPLES), num_workers=1).micro_batches(0))


def test_a_data_set_that_cannot_be_sent_to_workers_says_so():
    with pytest.raises(InputError, match=r"cannot be sent to worker processes .*; num_workers: 0 does without them"):
        next(loader([lambda: 1], num_workers=1).micro_batches(0))


def test_more_workers_than_cores_are_not_started(capsys):
    assert loader(num_workers=999).num_micro_batches() == 12
    assert "num_workers: 999 is more than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": []}, "empty"),
        ({"batch_size": 0}, "batch_size"),
        ({"shuffle": True, "sampler": "sequential"}, "contradict"),
        ({"dataset": Stream(), "shuffle": True}, "its own order"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        loader(**options)


def test_global_batches_go_on_where_progress_stands():
    def run(progress, num_epochs=2):
        return [[ids(b) for b in step] for step in global_batches(loader(), progress, 3, num_epochs)]

    whole = run(Progress())
    assert len(whole) == 8  # 12 micro-batches an epoch, 3 a step
    for steps_done in range(8):
        progress = Progress()
        steps = global_batches(loader(), progress, 3, 2)
        for _ in range(steps_done):
            next(steps)
        assert run(Progress(epoch=progress.epoch, position=progress.position)) == whole[steps_done:]


def test_an_epoch_without_a_micro_batch_is_an_error_and_no_endless_loop():
    with pytest.raises(InputError, match="no micro-batch"):
        next(global_batches(loader(batch_size=50, drop_last=True), Progress(), 1, None))


@pytest.mark.parametrize(
    ("options", "per_epoch", "steps"),
    [
        ({"max_steps": 7}, 10, 7),
        ({}, 10, 5),
        ({"num_epochs": 3}, 10, 15),
        ({"num_epochs": 3, "max_steps": 4}, 10, 4),
        ({"num_epochs": 2}, 11, 12),
        ({"num_epochs": 2}, None, None),
        ({"max_steps": 9}, None, 9),
    ],
)
def test_the_number_of_steps(options, per_epoch, steps):
    assert StepScheduler(**options).num_steps(2, per_epoch) == steps


def test_a_global_batch_size_gives_the_accumulation():
    assert StepScheduler(global_batch_size=32).micro_batches_per_step(8) == 4
    assert StepScheduler(grad_acc_steps=3).micro_batches_per_step(8) == 3
    with pytest.raises(InputError, match="whole number"):
        StepScheduler(global_batch_size=30).micro_batches_per_step(8)
    with pytest.raises(InputError, match="grad_acc_steps"):
        StepScheduler(global_batch_size=32, grad_acc_steps=2).micro_batches_per_step(8)
    with pytest.raises(InputError, match="max_steps must be at least 1"):
        StepScheduler(max_steps=0)
