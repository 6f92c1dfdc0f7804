"""The stream of training batches."""

import mmap
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import deque
from concurrent import futures
from typing import NamedTuple

import cv2
import numpy as np
import paddle

from ..data.validate import read_sample
from ..errors import InputError, RunError
from . import distributed

# Seconds after which a batch that the model waits for will not come any more.
WORKER_TIMEOUT = 50
# Bytes of a batch that a worker can hand over in memory that it shares with this process, of which
# only what is written exists. A larger batch goes through a pipe, several times as slowly.
SHM_BYTES = 1 << 28
# Samples in a row that cannot be read, after which no further one is tried in their place.
MAX_REPLACEMENTS = 10


class TrainSampler:
    """An endless stream of shuffled epochs, cut into batches.

    The stream's samples are numbered; sample p is item ``order(p // size)[p % size]``. It follows
    from the seed alone, so that a resumed run goes on where it stopped, several processes share
    one stream, and a set smaller than a batch trains too.

    Args:
        size: Samples in the data set.
        batch_size: Samples in a batch.
        parts: Batches that one process has in one step.
        first: Number of the first sample, over all processes.
        steps: How many there are.
        seed: Integer.
    """

    def __init__(self, size, batch_size, parts, first, steps, seed):
        self.size, self.batch_size, self.parts = size, batch_size, parts
        self.first, self.steps, self.seed = first, steps, seed

    def __iter__(self):
        """Yield this process's batches: lists of (number in the stream, index in the data set)."""
        epoch, order = None, None
        for turn in range(self.steps * self.parts):
            step, part = divmod(turn, self.parts)
            share = step * distributed.world_size() + distributed.rank()
            start = self.first + (share * self.parts + part) * self.batch_size
            batch = []
            for number in range(start, start + self.batch_size):
                if number // self.size != epoch:
                    epoch = number // self.size
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
                batch.append((number, int(order[number % self.size])))
            yield batch


class Batch(NamedTuple):
    """What one process trains on in one step, or in a part of it.

    Attributes:
        arrays: The samples' arrays by name, stacked.
        files: The images' paths, in the same order.
        problems: Of each sample that could not be read and was replaced by another, why.
    """

    arrays: dict
    files: list
    problems: list


class BatchReader:
    """Makes batches whose random transforms depend on the seed and the samples' numbers alone.

    PaddleSeg's transforms draw from the generators of ``random`` and NumPy: seeding both for each
    sample makes them the same for any number of workers, and different in every epoch.

    Args:
        dataset: A PaddleSeg data set in training mode.
        seed: Integer.
        replace_bad: Whether a sample that cannot be read is replaced by another one, which
            follows from seed and number as well.
    """

    def __init__(self, dataset, seed, replace_bad):
        self.dataset, self.seed, self.replace_bad = dataset, seed, replace_bad

    def __call__(self, numbered):
        """The ``Batch`` of a list of (number in the stream, index in the data set).

        Raises:
            InputError: A sample cannot be read, and is not, or cannot be, replaced; or samples
                have different sizes.
        """
        samples, files, problems = [], [], []
        for number, index in numbered:
            sample, index = self._read(number, index, problems)
            samples.append(sample)
            files.append(str(self.dataset.file_list[index][0]))
        return Batch(_stack(samples, files), files, problems)

    def _read(self, number, index, problems):
        for attempt in range(MAX_REPLACEMENTS):
            entropy = [self.seed, number] + [attempt] * (attempt > 0)
            state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            random.seed(state)
            np.random.seed(state)
            if attempt > 0:
                index = random.randrange(len(self.dataset))
            try:
                return read_sample(self.dataset, index), index
            except InputError as error:
                if not self.replace_bad:
                    raise
                problems.append(str(error))
        raise InputError(f"{problems[-1]} {MAX_REPLACEMENTS} samples in a row cannot be read.")


def _stack(samples, files):
    first = samples[0].items()
    names = [k for k, v in first if isinstance(v, np.ndarray) and not v.dtype.hasobject]
    for sample, file in zip(samples, files):
        for name in names:
            size, expected = np.shape(sample.get(name)), samples[0][name].shape
            if size != expected:
                raise InputError(
                    f"{file}: its {name} is {size} after the transforms, but {expected} that of "
                    f"{files[0]}, which make no batch; end train_dataset.transforms with a crop "
                    "and padding to one size."
                )
    return {name: np.stack([sample[name] for sample in samples]) for name in names}


def train_batches(read, sampler, num_workers):
    """Yield each ``Batch`` of a sampler, its arrays as tensors.

    Args:
        read: ``BatchReader``.
        sampler: ``TrainSampler``.
        num_workers: Processes that prepare batches meanwhile; 0 prepares them here, when asked.

    Raises:
        InputError: A sample cannot be read.
        RunError: A process has died, or has not answered in ``WORKER_TIMEOUT`` seconds.
    """
    batches = _read_ahead(read, sampler, num_workers) if num_workers > 0 else map(read, sampler)
    for batch in batches:
        yield batch._replace(arrays={k: paddle.to_tensor(v) for k, v in batch.arrays.items()})


def _read_ahead(read, sampler, num_workers):
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)
    most = 2 * num_workers + 1  # batches under way, the one in use among them
    shared = _share(most)
    start = (read, os.getpid(), shared)
    pool = futures.ProcessPoolExecutor(num_workers, context, _start_worker, start)
    waiting = deque()
    try:
        for turn, numbered in enumerate(sampler):
            waiting.append(pool.submit(_work, numbered, turn % most))
            if len(waiting) == most:
                yield _unpack(*_result(waiting.popleft()), shared)
        while waiting:
            yield _unpack(*_result(waiting.popleft()), shared)
    except futures.BrokenExecutor:
        raise RunError(
            "A data worker was killed, as happens where memory runs out: try a lower "
            "--num_workers; --resume goes on from the last checkpoint."
        ) from None
    finally:
        # Public only as Python 3.14's kill_workers. One that hangs would keep this process from
        # ending; one that ends while it sends a batch leaves its reader waiting for the rest, until
        # the last end to write to, this process's own, is closed.
        for worker in pool._processes.values():
            worker.kill()
        pool._result_queue._writer.close()
        pool.shutdown()


def _result(future):
    for _ in range(WORKER_TIMEOUT):  # by the second: those in which Ctrl-Z has stopped us are one
        if futures.wait([future], 1).done:
            return future.result()
    raise RunError(
        f"A data worker has not answered for {WORKER_TIMEOUT} s: check the disk or network that "
        "holds the images; --resume goes on from the last checkpoint."
    )


def _share(count):
    """Memory for as many batches, which a process that is forked shares; none where nobody forks.

    Unlike Python's own shared memory, it is not in /dev/shm, which is small in containers.
    """
    if not hasattr(os, "fork"):
        return []
    try:
        return [mmap.mmap(-1, SHM_BYTES) for _ in range(count)]
    except OSError:  # where a process may not reserve so much
        return []


_reader, _shared = None, []  # of a worker


def _start_worker(read, parent, shared):
    global _reader, _shared
    _reader, _shared = read, shared
    for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal sends to workers, too
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # there are other workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(numbered, place):
    """A ``Batch`` and None; or ``place``, where its arrays are, in whose stead it tells how."""
    batch = _reader(numbered)
    layout, end = {}, 0
    for name, array in batch.arrays.items():
        layout[name] = {"shape": array.shape, "dtype": array.dtype, "offset": end}
        end += -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if not _shared or end > SHM_BYTES:
        return batch, None
    for name, view in _views(layout, _shared[place]).items():
        view[...] = batch.arrays[name]
    return batch._replace(arrays=layout), place


def _unpack(batch, place, shared):
    """The ``Batch`` that ``_work`` answers with, its arrays as long as no other takes the place."""
    return batch if place is None else batch._replace(arrays=_views(batch.arrays, shared[place]))


def _views(layout, memory):
    """The arrays that lie in a shared memory, by name."""
    return {name: np.ndarray(buffer=memory, **where) for name, where in layout.items()}
