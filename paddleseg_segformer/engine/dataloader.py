"""Training data: shuffling, batches, data-loading workers, steps in several processes."""

import contextlib
import mmap
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import deque
from concurrent import futures
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import cv2
import numpy as np
import paddle

from ..data.validate import read_sample
from ..errors import InputError, RunError
from ..ops import ChannelTables
from . import distributed
from .upload import on_gpu, upload

WORKER_TIMEOUT = 50  # seconds without an answer, after which a data-loading worker is stalled
# Size of a shared-memory slot, which holds one batch. Memory is used only where it is written to.
# A larger batch is sent through a pipe, which takes several times as long.
SHM_BYTES = 1 << 28
MAX_REPLACEMENTS = 10  # attempts to read a sample or a replacement of it


@dataclass
class TrainSampler:
    """Epochs, shuffled or not, as one endless stream of samples, cut into batches.

    Samples are numbered from 0; in epoch e = p // size, sample p is item
    ``permutation(seed, e)[p % size]`` of the data set, or ``p % size`` if it is not shuffled. The
    order depends on the seed alone, so that a run resumes anywhere, several processes share one
    stream, and a data set may be smaller than a batch.
    """

    size: int  # of the data set
    batch_size: int  # of a micro-batch
    grad_accum_steps: int  # micro-batches of one process in an optimizer step
    first: int  # number of the first sample, over all processes
    steps: int  # number of optimizer steps
    seed: int
    shuffle: bool = True

    def __iter__(self):
        """Yield this process's micro-batches: lists of (sample number, index in the data set)."""
        epoch, order = None, range(self.size)
        for i in range(self.steps * self.grad_accum_steps):
            step, micro_step = divmod(i, self.grad_accum_steps)
            process = step * distributed.world_size() + distributed.rank()
            start = self.first + (process * self.grad_accum_steps + micro_step) * self.batch_size
            batch = []
            for number in range(start, start + self.batch_size):
                if self.shuffle and number // self.size != epoch:
                    epoch = number // self.size
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
                batch.append((number, int(order[number % self.size])))
            yield batch


class Batch(NamedTuple):
    """A micro-batch of one process."""

    arrays: dict  # the samples' arrays by name, stacked
    files: list  # the images' paths, in the same order
    problems: list  # error messages of the samples that were replaced
    bad_images: list  # positions of the images that are not finite
    pinned: Any = None  # the memory that a GPU copies the arrays from, kept as long as the batch


@dataclass
class BatchReader:
    """Reads batches; random transforms depend on the seed and the samples' numbers alone.

    The global generators of ``random`` and NumPy, which PaddleSeg's transforms use, are seeded for
    each sample, so that augmentation is the same for any number of workers.
    """

    dataset: Any  # a PaddleSeg data set in training mode
    seed: int
    replace_bad: bool  # whether to replace a sample that cannot be read by a random other one
    normalize: Any = None  # the data set's ``DeferredNormalize``

    def __call__(self, numbered):
        """Read the ``Batch`` of a list of (sample number, index in the data set).

        Raises:
            InputError: A sample cannot be read and is not replaced, too many in a row cannot be
                read, or samples have different sizes.
        """
        samples, files, problems = [], [], []
        for number, index in numbered:
            sample, file = self._read(number, index, problems)
            samples.append(sample)
            files.append(file)
        if self.normalize is not None:
            self.normalize(samples)
        arrays = _stack(samples, files)
        # Here and not after the upload, where a GPU would have to finish its work for the answer.
        bad = [i for i, image in enumerate(arrays["img"]) if not np.isfinite(image).all()]
        return Batch(arrays, files, problems, bad)

    def _read(self, number, index, problems):
        for attempt in range(MAX_REPLACEMENTS):
            entropy = [self.seed, number] + [attempt] * (attempt > 0)
            state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            random.seed(state)
            np.random.seed(state)
            index = random.randrange(len(self.dataset)) if attempt > 0 else index
            try:
                return read_sample(self.dataset, index), str(self.dataset.file_list[index][0])
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
                    f"{file}: its {name} has shape {size} after the transforms, but that of "
                    f"{files[0]} has {expected}; end train_dataset.transforms with a crop and "
                    "padding to one size."
                )
    return {name: np.stack([sample[name] for sample in samples]) for name in names}


class TrainBatches:
    """Iterator over each ``Batch`` of a ``TrainSampler``, as tensors.

    Without data-loading workers, this process reads a batch when it is needed. Iterating raises an
    InputError if a sample cannot be read, and a RunError if a worker was killed, or has not
    answered for ``WORKER_TIMEOUT`` seconds.

    Args:
        read: ``BatchReader``.
        sampler: ``TrainSampler``.
        num_workers: Number of data-loading workers.
    """

    def __init__(self, read, sampler, num_workers):
        self._pending, self._uploaded = deque(), deque()
        self._batches = (read(numbered) for numbered in sampler)
        if num_workers > 0:
            self._batches = _read_ahead(read, sampler, num_workers, self._pending)
        self._step = sampler.grad_accum_steps
        self._on_gpu = on_gpu()
        self._tables = None if read.normalize is None else ChannelTables(read.normalize.table)

    def __iter__(self):
        return self

    def __next__(self):
        return self._uploaded.popleft() if self._uploaded else self._to_tensors(next(self._batches))

    def prefetch(self):
        """Upload what workers have read of the next step; call it while a GPU is busy.

        It neither waits for a worker nor raises its error: iterating does.
        """
        while self._on_gpu and len(self._uploaded) < self._step and self._is_next_read():
            self._uploaded.append(self._to_tensors(next(self._batches)))

    def close(self):
        """End the workers."""
        self._batches.close()

    def _is_next_read(self):
        read = self._pending and self._pending[0].done()
        return read and self._pending[0].exception() is None

    def _to_tensors(self, batch):
        if not self._on_gpu:
            arrays, pinned = {k: paddle.to_tensor(v) for k, v in batch.arrays.items()}, None
        else:
            arrays, pinned = upload(batch.arrays)
        if "valid_rows" in arrays:
            valid = arrays.pop("valid_rows") * arrays.pop("valid_columns")
            arrays["img"] = self._tables(arrays["img"], valid)
        return batch._replace(arrays=arrays, pinned=pinned)


def synchronized_steps(batches, grad_accum_steps, stop):
    """Yield each optimizer step's micro-batches, and the ``problems`` in those of all processes.

    Args:
        batches: Iterator over this process's ``Batch`` objects, as ``TrainBatches``.
        grad_accum_steps: Micro-batches of one process in an optimizer step.
        stop: ``StopSignal``; all processes end before the same step.

    Raises:
        InputError, RunError: This or another process cannot read its data.
    """
    with contextlib.closing(batches):
        while True:
            micro_batches, error = [], None
            try:
                micro_batches = list(islice(batches, grad_accum_steps))
            except (InputError, RunError) as caught:
                error = caught
            problems = [problem for batch in micro_batches for problem in batch.problems]
            flags = [bool(error), bool(stop.requested), bool(problems)]
            counts = distributed.all_reduce_sum(np.array(flags, dtype="int64"))
            failed, stopped, replaced = counts > 0  # in any process
            if failed:
                raise error or RunError("Another process has failed; see its log.")
            if stopped or not micro_batches:
                return
            if replaced:
                problems = list(chain(*distributed.all_gather(problems)))
            yield micro_batches, problems


def _read_ahead(read, sampler, num_workers, pending):
    """Yield each ``Batch`` that workers read; ``pending``, a deque, has the next ones' futures."""
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)
    max_pending = 2 * num_workers + 1  # batches, including the one in use
    slots = _allocate_slots(max_pending)
    arguments = (read, os.getpid(), slots)
    pool = futures.ProcessPoolExecutor(num_workers, context, _init_worker, arguments)
    try:
        for i, numbered in enumerate(sampler):
            pending.append(pool.submit(_read_into_slot, numbered, i % max_pending))
            if len(pending) == max_pending:
                yield _from_slot(*_result(pending.popleft()), slots)
        while pending:
            yield _from_slot(*_result(pending.popleft()), slots)
    except futures.BrokenExecutor:
        raise RunError(
            "A data-loading worker was killed, probably because memory ran out: try a lower "
            "--num_workers; continue from the last checkpoint with --resume."
        ) from None
    finally:
        # kill_workers() is public only from Python 3.14 on. A stalled worker would keep this
        # process from exiting. One killed while it sends a batch leaves the pool's reader thread
        # waiting for the rest until the last write end, this process's, is closed.
        for worker in pool._processes.values():
            worker.kill()
        pool._result_queue._writer.close()
        pool.shutdown()


def _result(future):
    for _ in range(WORKER_TIMEOUT):  # in seconds: time suspended by SIGSTOP counts as one
        if futures.wait([future], 1).done:
            return future.result()
    raise RunError(
        f"A data-loading worker has not answered for {WORKER_TIMEOUT} s: check the disk or network "
        "that holds the images; continue from the last checkpoint with --resume."
    )


def _allocate_slots(count):
    """Shared-memory slots that forked workers inherit; none if they cannot be allocated."""
    # Unlike multiprocessing.shared_memory, not in /dev/shm, which is small in containers.
    with contextlib.suppress(OSError):  # address space is limited
        return [mmap.mmap(-1, SHM_BYTES) for _ in range(count)] if hasattr(os, "fork") else []
    return []


_worker = None  # (BatchReader, slots) in a worker process; stays None in the training process


def _init_worker(read, parent, slots):
    global _worker
    _worker = read, slots
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal signals workers, too
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # workers run in parallel already
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _read_into_slot(numbered, slot):
    """A ``Batch`` and None; or, if it fits into the slot, one with the arrays' layout, and slot."""
    read, slots = _worker
    batch = read(numbered)
    layout, end = {}, 0
    for name, array in batch.arrays.items():
        layout[name] = {"shape": array.shape, "dtype": array.dtype, "offset": end}
        end += -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if not slots or end > SHM_BYTES:
        return batch, None
    for name, array in _arrays_in(slots[slot], layout).items():
        array[...] = batch.arrays[name]
    return batch._replace(arrays=layout), slot


def _from_slot(batch, slot, slots):
    """The ``Batch`` that a worker returned; its arrays are valid until the slot is reused."""
    return batch if slot is None else batch._replace(arrays=_arrays_in(slots[slot], batch.arrays))


def _arrays_in(memory, layout):
    return {name: np.ndarray(buffer=memory, **where) for name, where in layout.items()}
