"""The process and its machine: device, CPU threads, allocator. Imports nothing of the project."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

# Paddle's advice on compiling extensions, its news of what BatchNorm now always does, and that an
# exported graph has no operators that work in place.
for _message in (
    "No ccache found",
    "When training, we now always",
    r"In static graph mode, \w+_\(\)",
):
    warnings.filterwarnings("ignore", message=_message)

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddleseg-segformer", "numpy")

# OpenCV's warnings of a damaged file go to the terminal, past the error that names the file.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def _user_set_threads():
    """Whether OMP_NUM_THREADS is the user's, and not the 1 that Paddle sets when it is imported.

    What Paddle sets is not in the environment that the process was started with, but in that of
    the processes that paddle.distributed.launch starts.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads != "1" or "PADDLE_TRAINER_ID" in os.environ:
        return threads not in (None, "1")
    at_start = Path("/proc/self/environ")
    if "paddle" not in sys.modules or not at_start.exists():
        return "paddle" not in sys.modules
    return b"OMP_NUM_THREADS=1" in at_start.read_bytes().split(b"\0")


USER_SET_THREADS = _user_set_threads()
_threads, _pool = 1, None  # of parallel_map; tune_cpu sets them

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # <malloc.h>


def available_cpus() -> int:
    """The number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tune_cpu() -> None:
    """Make Paddle's CPU operators run at the machine's speed; call it before the first operator.

    Three defaults cost most of it: Paddle runs on one thread unless OMP_NUM_THREADS is set, glibc
    returns every large tensor to the kernel so that each operator pays its page faults again, and
    Paddle's MKL takes a slow path on AMD processors. What the user set in the environment
    (OMP_NUM_THREADS, MKL_DEBUG_CPU_TYPE, GLIBC_TUNABLES, MALLOC_*) stays. Results are unchanged.
    """
    global _threads, _pool
    # MKL reads its variable at its first call, not when it is loaded.
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    import paddle

    if USER_SET_THREADS:
        first = os.environ["OMP_NUM_THREADS"].split(",")[0].strip()
        _threads = max(1, int(first)) if first.isdigit() else 1
    else:
        processes_here = int(os.environ.get("PADDLE_LOCAL_SIZE", 1))
        _threads = max(1, available_cpus() // processes_here)
    # Also where OMP_NUM_THREADS said as much: somebody's run of Paddle Inference leaves Paddle one.
    paddle.base.core.set_num_threads(_threads)
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, "operators", _use_one_thread)
    _keep_freed_memory()


def num_threads() -> int:
    """How many items ``parallel_map`` works on at the same time."""
    import paddle

    return _threads if paddle.get_device() == "cpu" else 1


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``[function(item) for item in items]``, on the CPU on all threads that ``tune_cpu`` found.

    Most of Paddle's CPU operators use one thread, whatever their number is set to. Work that falls
    into pieces is faster when each thread runs the operators of its own piece. No gradients are
    recorded. Not to be nested: the inner call would wait for threads that the outer one holds.
    """
    import paddle

    def run(item):
        with paddle.no_grad():  # which is a thread's own
            return function(item)

    items = list(items)
    if num_threads() == 1 or len(items) == 1:
        return [run(item) for item in items]
    return list(_pool.map(run, items))


def _after_fork():
    """A forked child has none of the pool's threads: it works alone, until it is tuned itself."""
    global _threads, _pool
    _threads, _pool = 1, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _use_one_thread():
    """Let the products that this thread starts run on it alone."""
    import paddle

    libraries = Path(paddle.__file__).parent / "libs"
    for name, function in (
        ("libmklml_intel.so", "MKL_Set_Num_Threads_Local"),
        ("libiomp5.so", "omp_set_num_threads"),
    ):
        if (libraries / name).exists():
            getattr(ctypes.CDLL(str(libraries / name)), function)(1)


def _keep_freed_memory():
    user_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if user_set or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)
    libc.mallopt(_M_ARENA_MAX, 1)  # the other arenas, of parallel_map's threads, cannot keep it


def set_device(name: str | None = None) -> str:
    """Make ``name`` Paddle's device and return it.

    Args:
        name: ``"gpu"``, ``"gpu:1"``, ``"cpu"`` or another of Paddle's device names; None takes the
            GPU where this Paddle can use one, else the CPU.

    Raises:
        ValueError: This machine, or this build of Paddle, has no such device.
    """
    import paddle

    if name is None:
        name = "gpu" if has_gpu() else "cpu"
    kind, colon, index = name.partition(":")
    if kind == "gpu" and not has_gpu():
        reason = (
            "no GPU is visible"
            if paddle.is_compiled_with_cuda()
            else "the installed Paddle is a CPU build"
        )
        raise ValueError(
            f"--device {name}: {reason}; install paddlepaddle-gpu on a machine with a GPU, "
            "or use --device cpu."
        )
    if kind == "gpu" and colon:  # of one that is not there, Paddle ends the process
        last = paddle.device.cuda.device_count() - 1
        if not index.isdecimal() or int(index) > last:
            raise ValueError(f"--device {name}: is not there; take one of gpu:0 to gpu:{last}.")
    try:
        paddle.set_device(name)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--device {name}: Paddle cannot use it ({error}).") from error
    return name


def has_gpu() -> bool:
    """Whether this Paddle can use a GPU here."""
    import paddle

    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def versions() -> dict[str, str]:
    """The versions of Python and of what results depend on, by name, as far as installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
