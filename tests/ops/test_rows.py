"""Functions of a map's rows that are computed by strips of rows."""

import numpy as np
import paddle
import pytest

from paddleseg_segformer import device
from paddleseg_segformer.ops import map_rows, rows

CHANNELS, WIDTH = 3, 5


def sums_of_three_rows(x):
    """Each row plus its neighbors, with zeros around the map; NumPy ``[N, rows * WIDTH, C]``."""
    n, _, c = x.shape
    rows = np.pad(x.reshape(n, -1, WIDTH, c), [(0, 0), (1, 1), (0, 0), (0, 0)])
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]).reshape(x.shape)


class Function:
    """``sums_of_three_rows`` or twice the value, and a record of its calls."""

    def __init__(self, halo):
        self.halo, self.heights = halo, []

    def __call__(self, x, height):
        assert x.shape == [2, height * WIDTH, CHANNELS]
        self.heights.append(height)
        if not self.halo:
            return x * 2
        return paddle.to_tensor(sums_of_three_rows(x.numpy()))


@pytest.mark.cpu_branch("a GPU processes the whole map at once")
@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize(
    "threads, height, strips",
    [(1, 90, 1), (2, 64, 2), (2, 65, 2), (3, 97, 3), (3, 31, 1), (4, 130, 4)],
)
def test_strips(threads, height, strips, halo, use_threads):
    use_threads(threads)
    x = np.random.default_rng(0).normal(size=[2, height * WIDTH, CHANNELS]).astype("float32")
    function = Function(halo)
    with paddle.no_grad():
        y = map_rows(function, paddle.to_tensor(x), height, CHANNELS, halo).numpy()
    np.testing.assert_array_equal(y, sums_of_three_rows(x) if halo else x * 2)
    assert len(function.heights) == strips
    borders = 2 * halo * (strips - 1)
    assert sum(function.heights) == height + borders
    assert max(function.heights) - min(function.heights) <= 1 + halo


def test_small_maps_are_whole(use_threads):
    """A halo would be much of a small strip."""
    use_threads(2)
    for halo, height in ((0, 31), (1, 63)):
        function = Function(halo)
        with paddle.no_grad():
            map_rows(function, paddle.ones([2, height * WIDTH, CHANNELS]), height, CHANNELS, halo)
        assert function.heights == [height]


@pytest.mark.cpu_branch("a GPU processes the whole map at once")
@pytest.mark.parametrize("threads, strips", [(1, 3), (2, 4), (4, 4)])
def test_strips_of_a_large_map_fit_into_the_cache(threads, strips, use_threads, monkeypatch):
    use_threads(threads)
    monkeypatch.setattr(rows, "MAX_ELEMENTS", 2 * 40 * WIDTH * 7)
    function, x = Function(0), paddle.rand([2, 100 * WIDTH, CHANNELS])
    with paddle.no_grad():
        y = map_rows(function, x, 100, 7)
    assert len(function.heights) == strips and sum(function.heights) == 100
    assert (y == 2 * x).all()


def test_with_gradients_maps_are_whole(use_threads):
    use_threads(2)
    x = paddle.ones([2, 64 * WIDTH, CHANNELS])
    x.stop_gradient = False
    function = Function(0)
    map_rows(function, x, 64, CHANNELS).sum().backward()
    assert function.heights == [64] and (x.grad == 2).all()


def test_maps_of_parallel_images_are_whole(use_threads):
    """The threads are busy with the other images."""
    use_threads(2)
    functions, x = [Function(0) for _ in range(4)], paddle.ones([2, 64 * WIDTH, CHANNELS])
    results = device.parallel_map(lambda function: map_rows(function, x, 64, CHANNELS), functions)
    assert len(results) == 4 and all(function.heights == [64] for function in functions)
