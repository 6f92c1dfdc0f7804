"""Process setup: device, CPU threads, memory allocator. Importing it does not import Paddle."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import warnings
import zlib  # noqa: F401  (before Paddle 2.6, after which zlib and PNG readers would crash)
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
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

    Three defaults are slow: Paddle runs on one thread unless OMP_NUM_THREADS is set, glibc returns
    the memory of large tensors to the kernel, so that each operator causes page faults, and
    Paddle's MKL uses a slow code path on AMD processors, but not on Intel's, where the variable
    that changes it would switch AVX-512 off. Environment variables of the user
    (OMP_NUM_THREADS, MKL_DEBUG_CPU_TYPE, GLIBC_TUNABLES, MALLOC_*) take precedence. Results are
    unchanged.
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
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, "operators", _use_one_thread)
    _keep_freed_memory()


def _cpu_info():
    """Linux's description of the processors, bytes; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_bytes()
    except OSError:
        return b""


def num_threads() -> int:
    """The number of items that ``parallel_map`` processes at the same time."""
    import paddle

    return _threads if paddle.get_device() == "cpu" else 1


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``[function(item) for item in items]``; on the CPU in parallel, in ``tune_cpu``'s threads.

    Most of Paddle's CPU operators use one thread, whatever their number is set to, so that
    independent items are faster in parallel. No gradients are recorded. Calls must not be nested:
    the inner one would wait for the threads of the outer one.
    """
    import paddle

    def run(item):
        with paddle.no_grad():  # it applies per thread
            return function(item)

    items = list(items)
    if num_threads() == 1 or len(items) == 1:
        return [run(item) for item in items]
    return list(_pool.map(run, items))


def _after_fork():
    """Use one thread until the child calls ``tune_cpu``: threads do not survive a fork."""
    global _threads, _pool
    _threads, _pool = 1, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _use_one_thread():
    """Make MKL and OpenMP use one thread when called from this thread."""
    import paddle

    functions = {"libmklml_intel.so": "MKL_Set_Num_Threads_Local"}
    functions["libiomp5.so"] = "omp_set_num_threads"
    for name, function in functions.items():
        library = Path(paddle.__file__).parent / "libs" / name
        if library.exists():
            getattr(ctypes.CDLL(str(library)), function)(1)


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
