"""The stream of training batches."""

import random

import numpy as np
import paddle
from paddle.io import BatchSampler, DataLoader, Dataset

from ..errors import InputError
from . import distributed


class TrainSampler(BatchSampler):
    """An endless stream of shuffled epochs, cut into batches.

    The stream's samples are numbered; sample p is item ``order(p // size)[p % size]``. It follows
    from the seed alone, so that a resumed run goes on where it stopped, several processes share
    one stream, and a set smaller than a batch trains too.

    Args:
        size: Samples in the data set.
        batch_size: Samples in a batch of one process.
        start, stop: First iteration, and the one before which the stream ends.
        seed: Integer.
    """

    def __init__(self, size, batch_size, start, stop, seed):
        self.size, self.batch_size = size, batch_size
        self.start, self.stop, self.seed = start, stop, seed

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        """Yield lists of (number in the stream, index in the data set)."""
        epoch, order = None, None
        for iteration in range(self.start, self.stop):
            process = iteration * distributed.world_size() + distributed.rank()
            batch = []
            for number in range(process * self.batch_size, (process + 1) * self.batch_size):
                if number // self.size != epoch:
                    epoch = number // self.size
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
                batch.append((number, int(order[number % self.size])))
            yield batch


def read_sample(dataset, index):
    """``dataset[index]``, with an error that names the sample's files.

    Raises:
        InputError: The sample cannot be read or transformed.
    """
    try:
        return dataset[index]
    except InputError:
        raise
    except Exception as error:  # PaddleSeg's data sets raise whatever OpenCV and NumPy do
        files = " and ".join(map(str, dataset.file_list[index]))
        reason = " ".join(str(error).split())
        raise InputError(f"{files}: cannot be read or transformed ({reason}).") from error


class SeededDataset(Dataset):
    """A data set whose random transforms depend on the seed and the sample's number alone.

    PaddleSeg's transforms draw from the generators of ``random`` and NumPy: seeding both for each
    sample makes them the same for any number of workers, and different in every epoch.
    """

    def __init__(self, dataset, seed):
        super().__init__()
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, numbered):
        number, index = numbered
        state = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        random.seed(state)
        np.random.seed(state)
        try:
            return read_sample(self.dataset, index)
        except InputError as error:  # Paddle's workers would lose it: it travels in the batch
            return {"error": np.frombuffer(str(error).encode(), dtype="uint8")}


def train_batches(dataset, batch_size, start, stop, seed, num_workers):
    """Yield the batches, dictionaries of tensors, of the iterations from ``start`` to ``stop``.

    Raises:
        InputError: A sample cannot be read.
    """
    dataset = SeededDataset(dataset, seed)
    sampler = TrainSampler(len(dataset), batch_size, start, stop, seed)
    if num_workers > 0:
        batches = DataLoader(
            dataset, batch_sampler=sampler, collate_fn=_collate, num_workers=num_workers
        )
    else:  # not Paddle's loader without workers: its thread dies of an error, and it waits on
        batches = (_to_tensors(_collate([dataset[item] for item in batch])) for batch in sampler)
    for batch in batches:
        if "error" in batch:
            raise InputError(bytes(batch["error"].numpy()).decode())
        yield batch


def _collate(samples):
    """Stack the samples' arrays; of samples of which one is an error, the error alone is left."""
    for sample in samples:
        if "error" in sample:
            return sample
    arrays = [key for key, value in samples[0].items() if isinstance(value, np.ndarray)]
    return {key: np.stack([sample[key] for sample in samples]) for key in arrays}


def _to_tensors(arrays):
    return {key: paddle.to_tensor(value) for key, value in arrays.items()}
