"""One job of one of the implementations that benchmark.py compares, in a process of its own.

The process says {"ready": ...} when the job is prepared, and answers each line of its input with
the seconds that one more run took; at the end of its input, with its peak memory.
"""

import contextlib
import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from exported_implementations import EXPORTED
from implementations import IGNORED, IMPLEMENTATIONS


class Spec:
    """What to measure; ``benchmark.py`` writes it as JSON."""

    def __init__(self, text):
        self.__dict__.update(json.loads(text))
        rng = np.random.default_rng(0)
        h, w = self.size
        self.images = rng.normal(size=[self.batch_size, 3, h, w]).astype("float32")
        blocks = rng.integers(0, self.classes + 1, [self.batch_size, h // 16 + 1, w // 16 + 1])
        blocks[blocks == self.classes] = IGNORED
        self.labels = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, :h, :w]


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = Spec(sys.argv[1])
    implementation = {**IMPLEMENTATIONS, **EXPORTED}[spec.implementation](spec)
    step = getattr(implementation, spec.job)()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would hide what a run needs
    held = None if spec.job == "data" else implementation.held_memory()
    on_cpu = held is None
    held = _memory("VmRSS") if on_cpu else held
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    print(json.dumps({"ready": True}), file=answers, flush=True)
    result = None
    for _ in sys.stdin:
        implementation.synchronize()
        start = time.perf_counter()
        result = step()
        implementation.synchronize()
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)
    if spec.job == "infer":
        np.save(spec.result, result)
    peak = _memory("VmHWM") if on_cpu else implementation.peak_memory()
    summary = {"peak_memory": peak - held}
    if spec.job in ("train", "infer"):
        summary["gmacs"] = implementation.macs() / 1e9
        summary["machine_gmacs_per_second"] = _machine_speed(implementation, on_cpu) / 1e9
    print(json.dumps(summary), file=answers, flush=True)


def _machine_speed(implementation, on_cpu):
    """Multiply-accumulates a second of a large square product: what the device can do at most."""
    n = 2048 if on_cpu else 8192
    product, seconds = implementation.square_product(n), []
    for _ in range(5):
        implementation.synchronize()
        start = time.perf_counter()
        product()
        implementation.synchronize()
        seconds.append(time.perf_counter() - start)
    return n**3 / min(seconds)


def _memory(key):
    """A figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main()
