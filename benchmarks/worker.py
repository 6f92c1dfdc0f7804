"""A worker process of benchmark.py: runs one job of one implementation.

It writes JSON lines to stdout: {"ready": true} once the job is prepared, {"seconds": ...} after the
run that each line of stdin starts, and at the end of stdin a summary with the peak memory.
"""

import contextlib
import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from implementations import IGNORE_INDEX, IMPLEMENTATIONS, INFERENCE_ONLY


class Spec:
    """What to measure, from the JSON that benchmark.py passes, and random inputs for it.

    Attributes:
        images: float32 array ``[batch_size, 3, H, W]``.
        labels: int64 array ``[batch_size, H, W]`` of class indices and ``IGNORE_INDEX``.
    """

    def __init__(self, text):
        self.__dict__.update(json.loads(text))
        rng = np.random.default_rng(0)
        h, w = self.size
        self.images = rng.normal(size=[self.batch_size, 3, h, w]).astype("float32")
        blocks = rng.integers(0, self.classes + 1, [self.batch_size, h // 16 + 1, w // 16 + 1])
        blocks[blocks == self.classes] = IGNORE_INDEX
        self.labels = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, :h, :w]


def main():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    spec = Spec(sys.argv[1])
    implementation = {**IMPLEMENTATIONS, **INFERENCE_ONLY}[spec.implementation](spec)
    step = getattr(implementation, spec.job)()
    with contextlib.suppress(OSError, AttributeError):  # malloc_trim exists only in glibc
        ctypes.CDLL(None).malloc_trim(0)  # a run that reuses freed memory would seem to need none
    baseline = None if spec.job == "data" else implementation.baseline_memory()
    on_cpu = baseline is None
    baseline = _process_memory("VmRSS") if on_cpu else baseline
    Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
    print(json.dumps({"ready": True}), file=replies, flush=True)
    result = None
    for _ in sys.stdin:
        implementation.synchronize()
        start = time.perf_counter()
        result = step()
        implementation.synchronize()
        print(json.dumps({"seconds": time.perf_counter() - start}), file=replies, flush=True)
    if spec.job == "infer":
        np.save(spec.result, result)
    peak = _process_memory("VmHWM") if on_cpu else implementation.peak_memory()
    summary = {"peak_memory": peak - baseline}
    if spec.job in ("train", "infer"):
        summary["gmacs"] = implementation.macs() / 1e9
        summary["machine_gmacs_per_second"] = _peak_macs_per_second(implementation, on_cpu) / 1e9
    print(json.dumps(summary), file=replies, flush=True)


def _peak_macs_per_second(implementation, on_cpu):
    """Multiply-accumulates per second of a large square matmul, which approximate the peak."""
    n = 2048 if on_cpu else 8192
    matmul, seconds = implementation.square_matmul(n), []
    for _ in range(5):
        implementation.synchronize()
        start = time.perf_counter()
        matmul()
        implementation.synchronize()
        seconds.append(time.perf_counter() - start)
    return n**3 / min(seconds)


def _process_memory(key):
    """An entry of this process's /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main()
