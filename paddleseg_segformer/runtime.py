"""The process and its machine: device, CPU threads, allocator. Imports nothing of the project."""

import ctypes
import os
import platform
import sys
import warnings

# Paddle's advice on compiling extensions, and its news of what BatchNorm now always does.
for _message in ("No ccache found", "When training, we now always track global mean"):
    warnings.filterwarnings("ignore", message=_message)

# Paddle sets OMP_NUM_THREADS=1 when it is imported, so what the user set shows only before that;
# paddle.distributed.launch imports it and hands that 1 to its processes. Where Paddle was imported
# here before us, we cannot tell, and leave the threads alone.
_LAUNCHED = "PADDLE_TRAINER_ID" in os.environ
_USER_SET_THREADS = "paddle" in sys.modules or (
    "OMP_NUM_THREADS" in os.environ and not (_LAUNCHED and os.environ["OMP_NUM_THREADS"] == "1")
)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def available_cpus():
    """The number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tune_cpu():
    """Make Paddle's CPU operators run at the machine's speed; call it before the first operator.

    Three defaults cost most of it: Paddle runs on one thread unless OMP_NUM_THREADS is set, glibc
    returns every large tensor to the kernel so that each operator pays its page faults again, and
    Paddle's MKL takes a slow path on AMD processors. What the user set in the environment
    (OMP_NUM_THREADS, MKL_DEBUG_CPU_TYPE, GLIBC_TUNABLES, MALLOC_*) stays. Results are unchanged.
    """
    # MKL reads its variable at its first call, not when it is loaded.
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    if not _USER_SET_THREADS:
        import paddle

        processes_here = int(os.environ.get("PADDLE_LOCAL_SIZE", 1))
        paddle.base.core.set_num_threads(max(1, available_cpus() // processes_here))
    _keep_freed_memory()


def _keep_freed_memory():
    user_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if user_set or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)


def set_device(name=None):
    """Make ``name`` Paddle's device and return it.

    Args:
        name: ``"gpu"``, ``"gpu:1"``, ``"cpu"`` or another of Paddle's device names; None takes the
            GPU where this Paddle can use one, else the CPU.

    Raises:
        ValueError: This machine, or this build of Paddle, has no such device.
    """
    import paddle

    if name is None:
        name = "gpu" if _has_gpu() else "cpu"
    if name.split(":")[0] == "gpu" and not _has_gpu():
        reason = (
            "no GPU is visible"
            if paddle.is_compiled_with_cuda()
            else "the installed Paddle is a CPU build"
        )
        raise ValueError(
            f"--device {name}: {reason}; install paddlepaddle-gpu on a machine with a GPU, "
            "or use --device cpu."
        )
    try:
        paddle.set_device(name)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--device {name}: Paddle cannot use it ({error}).") from error
    return name


def _has_gpu():
    import paddle

    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
