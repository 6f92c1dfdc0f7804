"""Data-parallel processes: rank, world size and collective operations."""

import os

import paddle
from paddle import distributed

rank, world_size = distributed.get_rank, distributed.get_world_size


def start():
    """Initialize the process group if ``paddle.distributed.launch`` started several processes."""
    if world_size() > 1 and not distributed.is_initialized():
        if paddle.get_device() == "cpu":  # without it, a GPU build of Paddle would use its GPUs
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        distributed.init_parallel_env()


def broadcast_object(value):
    """The first process's value, a small Python object, in every process."""
    return all_gather(value)[0]


def all_gather(value):
    """The list of all processes' values, Python objects, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values = []
    distributed.all_gather_object(values, value)
    return values


def all_reduce_sum(array):
    """The element-wise sum of a NumPy array, int64 or float64, over all processes."""
    if world_size() == 1:
        return array
    tensor = paddle.to_tensor(array)
    distributed.all_reduce(tensor)
    return tensor.numpy()


def broadcast_batch_norm_stats(layer):
    """Copy the first process's BatchNorm statistics, which differ by process, to all of them."""
    if world_size() > 1:
        for tensor in layer.state_dict().values():
            if tensor.stop_gradient:
                distributed.broadcast(tensor, src=0)
