"""Process setup: device, CPU threads, memory allocator. Importing it does not import Paddle."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import platform
import sys
import threading
import warnings
import zlib  # noqa: F401  (before Paddle 2.6, after which zlib and PNG readers would crash)
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import one_line
from .requirements import INSTALL_GPU_BUILD

# Paddle's warnings on compiling extensions, on the BatchNorm statistics, and on in-place operators
# in exported graphs.
_MESSAGES = "No ccache found", "When training, we now always", r"In static graph mode, \w+_\(\)"
for _message in _MESSAGES:
    warnings.filterwarnings("ignore", message=_message)

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddleseg-segformer", "numpy")

# OpenCV prints warnings on damaged files, which errors of this package report with the file name.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def _user_set_threads():
    """Whether the user set OMP_NUM_THREADS; Paddle sets it to 1 when it is imported."""
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads != "1" or "PADDLE_TRAINER_ID" in os.environ:
        return threads not in (None, "1")
    # Paddle's value is in no initial environment but that of paddle.distributed.launch's processes.
    initial = Path("/proc/self/environ")
    if "paddle" not in sys.modules or not initial.exists():
        return "paddle" not in sys.modules
    return b"OMP_NUM_THREADS=1" in initial.read_bytes().split(b"\0")


USER_SET_THREADS = _user_set_threads()

# The threads of parallel_map, which tune_cpu creates: one pool per process, like Paddle's own.
_threads, _pool = 1, None


class _ThreadState(threading.local):
    count = None  # threads of the item of parallel_map or parallel_imap that it processes, if any


_this_thread = _ThreadState()

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # <malloc.h>


def available_cpus() -> int:
    """The number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpus_per_process() -> int:
    """The CPUs, at least 1, for each process of this machine that Paddle's launcher started."""
    return max(1, available_cpus() // int(os.environ.get("PADDLE_LOCAL_SIZE", 1)))


def tune_cpu() -> None:
    """Configure Paddle for speed on the CPU; call it before the first operator.

    Four defaults are slow: Paddle runs on one thread unless OMP_NUM_THREADS is set, glibc returns
    the memory of large tensors to the kernel, so that each operator causes page faults, OpenMP's
    threads wait for the next operator in a loop for 200 ms, on CPUs that ``parallel_map`` needs,
    and Paddle's MKL uses a slow code path on AMD processors, but not on Intel's, where the variable
    that changes it would switch AVX-512 off. Environment variables of the user (OMP_NUM_THREADS,
    KMP_BLOCKTIME, OMP_WAIT_POLICY, MKL_DEBUG_CPU_TYPE, GLIBC_TUNABLES, MALLOC_*) take precedence.
    Results are unchanged.
    """
    global _threads, _pool
    if b"AuthenticAMD" in _cpu_info():
        # MKL reads it at its first call, not when it is loaded.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    import paddle

    if USER_SET_THREADS:
        first = os.environ["OMP_NUM_THREADS"].split(",")[0].strip()
        _threads = max(1, int(first)) if first.isdigit() else 1
    else:
        _threads = cpus_per_process()
    # Even if OMP_NUM_THREADS has this value: Paddle Inference sets the number of threads to 1.
    paddle.base.core.set_num_threads(_threads)
    waits = {"KMP_BLOCKTIME", "OMP_WAIT_POLICY"} & set(os.environ)
    if not waits and (library := _library("libiomp5.so")):
        library.kmp_set_blocktime(1)
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, "operators", _start_thread)
    _keep_freed_memory()


def _cpu_info():
    """Linux's description of the processors, bytes; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_bytes()
    except OSError:
        return b""


def num_threads() -> int:
    """The number of items that ``parallel_map`` processes at the same time.

    Within an item, its share of the threads.
    """
    import paddle

    return (_this_thread.count or _threads) if paddle.get_device() == "cpu" else 1


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``[function(item) for item in items]``; on the CPU in parallel, in ``tune_cpu``'s threads.

    Most of Paddle's CPU operators use one thread, whatever their number is set to, so that
    independent items are faster in parallel. The calling thread is one of the threads. No gradients
    are recorded. If there are fewer items than threads, each item has an equal share of them, for
    matrix products and calls within it.
    """
    import paddle

    items = list(items)
    results, queue = [None] * len(items), iter(range(len(items)))
    threads = num_threads()
    workers = max(1, min(threads, len(items)))

    def work():
        try:
            with _use_threads(threads // workers), paddle.no_grad():  # both apply per thread
                for i in queue:
                    results[i] = function(items[i])
        finally:
            for _ in queue:  # after an error, no other item starts
                pass

    helpers = [_pool.submit(work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    return results


def parallel_imap(
    function: Callable[[Any], Any], items: Iterable[Any], count: int, limit: int | None = None
) -> Iterator[Any]:
    """Yield ``function(item)`` of each item, in their order; on the CPU several at a time.

    For large items, such as images: while results are used, the next ones are computed. The last
    items, if they are fewer than half of the threads, are processed one after another in the
    calling thread, where ``function`` can itself use ``parallel_map``. No gradients are recorded.

    Args:
        function: Function of an item.
        items: The items; read when a thread is free.
        count: Their number.
        limit: Most items at a time; None means one per thread.
    """
    import paddle

    def run(item):
        with paddle.no_grad():
            return function(item)

    items, threads, pending = iter(items), min(num_threads(), limit or count), deque()
    ahead = min(num_threads() + 1, limit or count)  # the pool has an item when a thread is free
    last = count % threads if threads and 2 * (count % threads) <= threads else 0
    try:
        if threads > 1:
            for item in itertools.islice(items, count - last):
                pending.append(_pool.submit(run, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:  # after an error, nothing runs on
        for future in pending:
            future.cancel()
        wait(pending)
    yield from map(run, items)


def _after_fork():
    """Use one thread until the child calls ``tune_cpu``: threads do not survive a fork."""
    global _threads, _pool
    _threads, _pool, _this_thread.count = 1, None, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _start_thread():
    """Initialize a thread of the pool, which only processes items."""
    _this_thread.count = 1
    _set_local_threads(1, 1)


@contextlib.contextmanager
def _use_threads(count):
    """While the calling thread processes an item: its operators and inner calls use so many."""
    if count == num_threads():
        yield
        return
    before, _this_thread.count = _this_thread.count, count
    previous = _set_local_threads(count, count)
    try:
        yield
    finally:
        _this_thread.count = before
        _set_local_threads(*previous)


def _set_local_threads(mkl, openmp):
    """Set the number of threads that MKL and OpenMP use when called from this thread.

    Returns the previous two numbers; MKL's 0 means the one of the process.
    """
    mkl_before, openmp_before = 0, 1
    if library := _library("libmklml_intel.so"):
        mkl_before = library.MKL_Set_Num_Threads_Local(mkl)
    if library := _library("libiomp5.so"):
        openmp_before = library.omp_get_max_threads()
        library.omp_set_num_threads(openmp)
    return mkl_before, openmp_before


@cache
def _library(name):
    """A library that Paddle brings, or None where its build has none of this name."""
    import paddle

    path = Path(paddle.__file__).parent / "libs" / name
    return ctypes.CDLL(str(path)) if path.exists() else None


def _keep_freed_memory():
    """Make glibc reuse freed memory instead of returning it to the kernel."""
    user_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if user_set or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)
    libc.mallopt(_M_ARENA_MAX, 1)  # freed memory of other arenas is not kept


def set_device(name: str | None = None) -> str:
    """Set Paddle's device, and return its name.

    Args:
        name: ``"gpu"``, ``"gpu:1"``, ``"cpu"`` or another of Paddle's device names; default: the
            GPU if Paddle can use one, else the CPU.

    Raises:
        ValueError: This machine, or this build of Paddle, has no such device, or the build has no
            kernels for this GPU.
    """
    import paddle

    if name is None:
        name = "gpu" if has_gpu() else "cpu"
    kind, colon, index = name.partition(":")
    if kind == "gpu" and not has_gpu():
        reason = "no GPU is visible; use --device cpu"
        if not paddle.is_compiled_with_cuda():
            reason = (
                "the installed Paddle is a CPU build; use --device cpu, or run "
                f"pip uninstall paddlepaddle and {INSTALL_GPU_BUILD}"
            )
        raise ValueError(f"--device {name}: {reason}.")
    if kind == "gpu" and colon:  # Paddle ends the process if it does not exist
        last = paddle.device.cuda.device_count() - 1
        if not index.isdecimal() or int(index) > last:
            raise ValueError(f"--device {name}: does not exist; use one of gpu:0 to gpu:{last}.")
    try:
        paddle.set_device(name)
        has_kernels = kind != "gpu" or _multiplies()
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if "no kernel image" not in str(error):
            reason = one_line(error)
            raise ValueError(f"--device {name}: Paddle cannot use it ({reason}).") from error
        has_kernels = False
    if not has_kernels:
        capability = ".".join(map(str, paddle.device.cuda.get_device_capability()))
        raise ValueError(
            f"--device {name}: the installed Paddle, a build for CUDA {paddle.version.cuda()}, has "
            f"no kernels for this GPU, of compute capability {capability}; run "
            f"pip uninstall paddlepaddle-gpu and {INSTALL_GPU_BUILD}."
        )
    return name


def _multiplies():
    """Whether the device's kernels run: if a build has none for a GPU, Paddle only warns."""
    import paddle

    return (paddle.to_tensor([1.0, 2.0, 3.0]) * 2).tolist() == [2, 4, 6]


def set_gpu_precision(deterministic: bool, no_tf32: bool) -> None:
    """Choose a GPU's operators for this process; on another device, do nothing.

    Args:
        deterministic: Whether to use Paddle's deterministic operators, where it has them.
        no_tf32: Whether to compute float32 products and convolutions in full precision, and not in
            TF32 (10 bits of mantissa), as Paddle does by default on Ampere and later.
    """
    import paddle
    from paddle.base import core

    if not paddle.get_device().startswith("gpu"):
        return
    if deterministic:
        paddle.set_flags({"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1})
    if no_tf32:
        core.set_cublas_switch(False)
        core.set_cudnn_switch(False)


def has_gpu() -> bool:
    """Whether Paddle can use a GPU."""
    import paddle

    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that results depend on, by name."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed
