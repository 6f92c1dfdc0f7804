"""One process of several: rank, world size, sums over all of them."""

import paddle
from paddle import distributed


def start():
    """Join the other processes, where ``paddle.distributed.launch`` started several."""
    if world_size() > 1 and not distributed.is_initialized():
        distributed.init_parallel_env()


def rank():
    """This process's number, from 0."""
    return distributed.get_rank()


def world_size():
    """The number of processes that train or evaluate together."""
    return distributed.get_world_size()


def sum_over_processes(array):
    """The element-wise sum of an int64 NumPy array over all processes."""
    if world_size() == 1:
        return array
    tensor = paddle.to_tensor(array)
    distributed.all_reduce(tensor)
    return tensor.numpy()


def share_statistics(layer):
    """Give every process the first one's BatchNorm statistics, which else are each its own."""
    if world_size() > 1:
        for tensor in layer.state_dict().values():
            if tensor.stop_gradient:
                distributed.broadcast(tensor, src=0)
