"""The stream of batches: each sample once an epoch, from any start, for any number of processes."""

import random

import numpy as np
import pytest

from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine.loader import TrainSampler, train_batches


def stream(size, batch_size, start, stop, seed=0):
    return list(TrainSampler(size, batch_size, start, stop, seed))


@pytest.mark.parametrize("size, batch_size", [(10, 4), (3, 5), (7, 7), (1, 3)])
def test_each_sample_once_an_epoch(size, batch_size):
    flat = [item for batch in stream(size, batch_size, 0, 4 * size) for item in batch]
    assert [number for number, _ in flat] == list(range(len(flat)))
    indices = [index for _, index in flat]
    for epoch in range(len(flat) // size):
        assert sorted(indices[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    indices = [[i for _, i in batch] for batch in stream(50, 50, 0, 3)]
    assert indices[0] != indices[1] != indices[2]
    assert stream(50, 50, 0, 1, seed=1) != stream(50, 50, 0, 1, seed=0)


def test_a_later_start_continues_the_same_stream():
    assert stream(10, 4, 0, 9)[5:] == stream(10, 4, 5, 9)


def test_two_processes_share_the_stream_of_one(monkeypatch):
    whole = stream(10, 4, 0, 6)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(stream(10, 2, 0, 6))
    assert [a + b for a, b in zip(*halves)] == whole


class Random:
    """Samples that are random numbers, drawn as PaddleSeg's transforms draw them."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        draws = [index, random.random(), np.random.rand()]
        return {"img": np.array(draws, dtype="float64"), "trans_info": [("resize", (1, 2))]}


def batches(num_workers, seed=0):
    stream = train_batches(Random(), 2, 0, 8, seed, num_workers)
    return np.stack([batch["img"].numpy() for batch in stream])


def test_augmentation_is_the_same_for_any_number_of_workers():
    alone = batches(num_workers=0)
    np.testing.assert_array_equal(alone, batches(num_workers=2))
    assert alone.shape == (8, 2, 3)
    assert len(np.unique(alone[..., 1])) == 16  # no two samples of any epoch are alike
    assert not np.array_equal(alone, batches(num_workers=0, seed=1))
