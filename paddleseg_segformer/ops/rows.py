"""Functions of the rows of a feature map, computed by strips of rows, in parallel."""

import math

import paddle

from ..device import num_threads, parallel_map

# Rows of a strip at least, without a halo: smaller matrix products are less efficient.
MIN_ROWS = 16

# Elements of a strip's largest map: 4 MB in float32, to stay in a core's cache between operators.
MAX_ELEMENTS = 1 << 20


def map_rows(function, x, height, channels, halo=0):
    """``function(x, height)``; on a CPU without gradients by strips of rows in parallel.

    Many of Paddle's CPU operators use one thread. A strip per thread uses them all. Of large maps,
    strips are smaller, which is faster and takes less memory on one thread, too.

    Args:
        function: From the float tokens ``[N, rows * w, C]`` of some rows of a map, and their
            number, to tokens ``[N, rows * w, D]``.
        x: Float tokens ``[N, height * w, C]`` of the whole map.
        height: Its rows.
        channels: Channels of the largest map that ``function`` computes.
        halo: Rows above and below a row that its result depends on. At the borders of a strip, they
            are computed twice.

    Returns:
        Float tokens ``[N, height * w, D]``.
    """
    strips = 1
    if paddle.in_dynamic_mode() and not paddle.is_grad_enabled() and x.place.is_cpu_place():
        threads = num_threads()
        rounds = math.ceil(x.shape[0] * x.shape[1] * channels / (MAX_ELEMENTS * threads))
        strips = min(rounds * threads, height // (MIN_ROWS * (1 + halo)))
    if strips <= 1:
        return function(x, height)
    width = x.shape[1] // height
    edges = [height * i // strips for i in range(strips + 1)]

    def apply(i):
        first, last = max(edges[i] - halo, 0), min(edges[i + 1] + halo, height)
        y = function(x[:, first * width : last * width], last - first)
        start = (edges[i] - first) * width
        return y[:, start : start + (edges[i + 1] - edges[i]) * width]

    return paddle.concat(parallel_map(apply, range(strips)), axis=1)
