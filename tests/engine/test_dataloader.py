"""Training data: each sample once per epoch, from any start, for any number of processes."""

import contextlib
import mmap
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paddleseg_segformer import device
from paddleseg_segformer.engine import dataloader, distributed, options
from paddleseg_segformer.engine.dataloader import BatchReader, TrainBatches, TrainSampler
from paddleseg_segformer.errors import InputError, RunError


def stream(size, batch_size, steps, first=0, seed=0, grad_accum_steps=1):
    return list(TrainSampler(size, batch_size, grad_accum_steps, first, steps, seed))


@pytest.mark.parametrize("size, batch_size", [(10, 4), (3, 5), (7, 7), (1, 3)])
def test_each_sample_once_an_epoch(size, batch_size):
    flat = [item for batch in stream(size, batch_size, 4 * size) for item in batch]
    assert [number for number, _ in flat] == list(range(len(flat)))
    indices = [index for _, index in flat]
    for epoch in range(len(flat) // size):
        assert sorted(indices[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize("first", [0, 4])
def test_without_shuffling_the_order_is_the_data_sets(first):
    found = list(TrainSampler(5, 2, 1, first, 4, 7, shuffle=False))
    flat = [item for batch in found for item in batch]
    assert flat == [(number, number % 5) for number in range(first, first + 8)]


def test_epochs_and_seeds_differ():
    indices = [[i for _, i in batch] for batch in stream(50, 50, 3)]
    assert indices[0] != indices[1] != indices[2]
    assert stream(50, 50, 1, seed=1) != stream(50, 50, 1, seed=0)


def test_a_later_start_continues_the_same_stream():
    assert stream(10, 4, 9)[5:] == stream(10, 4, 4, first=20)


@pytest.mark.parametrize("micro", [1, 2])
def test_two_processes_share_the_stream_of_one(micro, monkeypatch):
    """In each step the first one gets the first half, cut into micro-batches."""
    whole = stream(10, 8, 6)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        turns = stream(10, 4 // micro, 6, grad_accum_steps=micro)
        steps = [turns[i : i + micro] for i in range(0, len(turns), micro)]
        halves.append([list(chain.from_iterable(step)) for step in steps])
    assert [a + b for a, b in zip(*halves)] == whole


class Random:
    """Samples that are random numbers, drawn as PaddleSeg's transforms draw them."""

    file_list = [[f"{index}.jpg", f"{index}.png"] for index in range(5)]  # noqa: RUF012
    broken = larger = ()

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index in self.broken:
            raise ValueError("not an image")
        draws = [index, random.random(), np.random.rand()]
        draws *= 1 + (index in self.larger)
        others = {"trans_info": [("resize", (1, 2))], "masks": np.array([{}, None], dtype=object)}
        return {"img": np.array(draws, dtype="float64"), **others}


def batches(num_workers, dataset=None, seed=0, replace_bad=False, first=0):
    read = BatchReader(dataset or Random(), seed, replace_bad)
    sampler = TrainSampler(5, 2, 1, first, 8 - first // 2, seed)
    return list(TrainBatches(read, sampler, num_workers))


def images(found):
    assert all(list(batch.arrays) == ["img"] for batch in found)  # the others are no tensors
    return np.stack([batch.arrays["img"].numpy() for batch in found])


def refuse(*args):
    raise OSError("Cannot allocate memory")


# Attributes of the module to replace.
TRANSPORTS = {
    "shared memory": {},
    "too large for it": {"SHM_BYTES": 1},
    "none to be had": {"mmap": SimpleNamespace(mmap=refuse, PAGESIZE=mmap.PAGESIZE)},
}


@pytest.mark.integration
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_augmentation_is_the_same_for_any_number_of_workers(transport, monkeypatch):
    """However batches are sent, and with more batches than shared-memory slots."""
    for name, value in TRANSPORTS[transport].items():
        monkeypatch.setattr(dataloader, name, value)
    alone = images(batches(num_workers=0))
    np.testing.assert_array_equal(alone, images(batches(num_workers=2)))
    assert alone.shape == (8, 2, 3)
    assert len(np.unique(alone[..., 1])) == 16  # no two samples of any epoch are alike
    assert not np.array_equal(alone, images(batches(num_workers=0, seed=1)))


@pytest.mark.integration
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_sample_is_named_or_replaced(num_workers):
    dataset = Random()
    dataset.broken = [3]
    with pytest.raises(InputError, match=r"3\.jpg and 3\.png: cannot be read .*not an image"):
        batches(num_workers, dataset)
    found = batches(num_workers, dataset, replace_bad=True)
    assert 3 not in images(found)[..., 0]
    problems = [problem for batch in found for problem in batch.problems]
    assert len(problems) >= 3 and all(problem.startswith("3.jpg") for problem in problems)
    for batch in found:  # the files are those of the replacements
        indices = batch.arrays["img"].numpy()[:, 0].astype(int)
        assert batch.files == [f"{index}.jpg" for index in indices]
    # A resumed run uses the same replacements, and no other sample changes.
    resumed = batches(num_workers, dataset, replace_bad=True, first=6)
    np.testing.assert_array_equal(images(found)[3:], images(resumed))
    whole, replaced = images(batches(num_workers)), images(found)
    np.testing.assert_array_equal(replaced[whole[..., 0] != 3], whole[whole[..., 0] != 3])


@pytest.mark.integration
@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_of_different_sizes_are_named(num_workers):
    dataset = Random()
    dataset.larger = [3]
    with pytest.raises(InputError, match=r"\d\.jpg: its img has shape .* that of \d\.jpg has"):
        batches(num_workers, dataset, replace_bad=True)


@pytest.mark.integration
@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_that_are_not_finite_are_named(num_workers):
    class NotFinite(Random):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample["img"][1:] = {1: np.nan, 3: -np.inf}.get(index, 1)
            return sample

    for batch in batches(num_workers, NotFinite()):
        assert batch.bad_images == [i for i, file in enumerate(batch.files) if file[0] in "13"]


def test_a_set_without_a_readable_sample_is_an_error():
    dataset = Random()
    dataset.broken = range(5)
    with pytest.raises(InputError, match="samples in a row"):
        batches(0, dataset, replace_bad=True)


@pytest.mark.parametrize(
    "cpus, processes, workers", [(64, None, 8), (64, 8, 8), (32, 8, 4), (4, 8, 1)]
)
def test_the_processes_of_a_machine_share_its_cpus(cpus, processes, workers, monkeypatch):
    """``PADDLE_LOCAL_SIZE`` is set by Paddle's launcher."""
    monkeypatch.setattr(options, "paddle", SimpleNamespace(get_device=lambda: "gpu:0"))
    monkeypatch.setattr(device, "available_cpus", lambda: cpus)
    monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", str(processes))
    assert options.TrainOptions().num_workers == workers


class Deadly(Random):
    """A data set whose sample 2 kills or stalls the worker that reads it."""

    def __init__(self, action):
        self.action = action

    def __getitem__(self, index):
        if index == 2:
            self.action()
        return super().__getitem__(index)


FAILURES = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), 50, "worker was killed"),
    "stalled": (lambda: time.sleep(600), 3, "has not answered"),
}


@pytest.mark.integration
@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_worker_is_an_error_and_leaves_no_process(case, monkeypatch):
    action, seconds, message = FAILURES[case]
    monkeypatch.setattr(dataloader, "WORKER_TIMEOUT", seconds)
    with pytest.raises(RunError, match=message):
        batches(2, Deadly(action))
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def start_reading(dataset, batches, connection):
    """Send the data-loading workers' process ids, and a message per batch."""
    os.setsid()
    found = TrainBatches(BatchReader(dataset, 0, False), TrainSampler(5, 1, 1, 0, 3, 0), 1)
    for i, _ in zip(range(batches), found):
        if i == 0:
            connection.send([worker.pid for worker in multiprocessing.active_children()])
        connection.send("batch")
    if batches == 1:
        signal.pause()


@pytest.fixture
def reading():
    """A function that starts ``start_reading``; returns its process and messages."""
    context, processes = multiprocessing.get_context("fork"), []

    def start(dataset, batches):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=start_reading, args=(dataset, batches, theirs)))
        processes[-1].start()
        theirs.close()
        return processes[-1], ours

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def ended(pid):
    """Whether a process, which may not be this one's child, has ended."""
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_workers_of_a_killed_process_end(reading):
    process, messages = reading(Random(), 1)
    workers = messages.recv()
    assert messages.recv() == "batch" and len(workers) == 1
    assert not any(map(ended, workers))
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while not all(map(ended, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(map(ended, workers))


class Slow(Random):
    def __getitem__(self, index):
        for _ in range(100):  # none of them passes while the process is suspended
            time.sleep(0.01)
        return super().__getitem__(index)


@pytest.mark.integration
def test_suspended_time_does_not_count_as_stalled(reading, monkeypatch):
    """Suspended by Ctrl-Z or by a cluster's scheduler."""
    monkeypatch.setattr(dataloader, "WORKER_TIMEOUT", 4)
    process, messages = reading(Slow(), 3)
    messages.recv()
    assert messages.recv() == "batch"
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.killpg(process.pid, signal.SIGCONT)
    assert [messages.recv(), messages.recv()] == ["batch"] * 2
    process.join()
    assert process.exitcode == 0


class Large(Random):
    """A data set whose batches take far longer to send than to read."""

    def __getitem__(self, index):
        return {"img": np.zeros([3, 3000, 3000], dtype="float32")}


@pytest.mark.integration
def test_workers_killed_while_sending_leave_no_thread(monkeypatch):
    """A thread that waits for the rest of a batch would keep the process from exiting."""
    monkeypatch.setattr(dataloader, "SHM_BYTES", 1)  # so that they send it through a pipe
    before = set(threading.enumerate())
    found = TrainBatches(BatchReader(Large(), 0, False), TrainSampler(5, 2, 1, 0, 9, 0), 2)
    next(found)
    assert set(threading.enumerate()) > before
    found.close()
    assert not [thread for thread in set(threading.enumerate()) - before if not thread.daemon]


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "fork"), reason="only forked workers share memory")
def test_arrays_are_not_sent_through_the_pipe(monkeypatch):
    """A single thread reads it, for all workers."""
    answers = []

    def note(future, *args):
        answers.append(result(future, *args))
        return answers[-1]

    result = dataloader.futures.Future.result
    monkeypatch.setattr(dataloader.futures.Future, "result", note)
    read = BatchReader(Large(), 0, False)
    found = list(TrainBatches(read, TrainSampler(5, 1, 1, 0, 1, 0), 1))
    assert found[0].arrays["img"].shape == [1, 3, 3000, 3000]
    assert len(pickle.dumps(answers)) < 10_000


class Labelled(Random):
    num_classes, ignore_index = 3, 255

    def __getitem__(self, index):
        label = np.array([[0, 255, 2 + (index == 4)]], dtype="uint8")
        return {**super().__getitem__(index), "label": label}


def test_a_label_out_of_range_names_its_file():
    with pytest.raises(InputError, match=r"4\.png: label 3 is neither a class"):
        batches(0, Labelled())


def test_a_color_label_names_the_tool_that_converts_it():
    class Colored(Random):
        num_classes, ignore_index = 3, 255

        def __getitem__(self, index):
            label = np.full([4, 5, 3], 200, dtype="uint8")
            return {**super().__getitem__(index), "label": label}

    with pytest.raises(InputError, match=r"png: must be a single-channel 8-bit image.*from_colors"):
        batches(0, Colored())
