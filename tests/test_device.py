"""CPU threads and memory in processes set up by tune_cpu, and the choice of a device."""

import os
import subprocess
import sys
import threading
import time
import types

import paddle
import pytest
from fork_server import python

from paddleseg_segformer import device

THREADS_BY_USER = """
from paddleseg_segformer import device
device.tune_cpu()
import paddle, os, signal, sys

loaded = list(sys.modules)  # in this order; Paddle 2.6 before zlib breaks both
assert loaded.index("zlib") < loaded.index("paddle.base.libpaddle")
assert device.USER_SET_THREADS and device.num_threads() == 3
squares = device.parallel_map(lambda i: i * i, range(50))
assert squares == [i * i for i in range(50)]
tensor = paddle.ones([2])
tensor.stop_gradient = False
assert all(t.stop_gradient for t in device.parallel_map(lambda i: tensor * i, range(9)))
assert not (tensor * 2).stop_gradient
try:
    device.parallel_map(lambda i: 1 // i, [1, 0])
except ZeroDivisionError:
    pass
else:
    raise AssertionError("the error is lost")
for tunes in (False, True):  # in a forked child, whose parent's threads are gone
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        if tunes:
            device.tune_cpu()
        assert device.num_threads() == (3 if tunes else 1)
        os._exit(7 if device.parallel_map(lambda i: i, range(5)) == list(range(5)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done")
"""


def test_parallel_calls_within_an_item(use_threads):
    """They do not wait for the threads of the outer call, and use one thread."""
    use_threads(3)

    def outer(i):
        assert device.num_threads() == 1
        return device.parallel_map(lambda j: (i, j), range(3))

    expected = [[(i, j) for j in range(3)] for i in range(8)]
    assert device.parallel_map(outer, range(8)) == expected
    assert list(device.parallel_imap(outer, range(8), 8)) == expected[:8]
    assert device.num_threads() == 3


@pytest.mark.parametrize("threads, items, share", [(7, 2, 3), (8, 3, 2), (3, 2, 1)])
def test_few_items_share_the_threads(threads, items, share, use_threads):
    """For matrix products, and for calls within an item, whose items run at the same time."""
    use_threads(threads)
    together = threading.Barrier(items * share)

    def local_threads():
        previous = device._set_local_threads(1, 1)
        device._set_local_threads(*previous)
        return previous

    def inner(j):
        together.wait(timeout=10)
        return device.num_threads(), local_threads()

    def outer(i):
        return local_threads(), device.parallel_map(inner, range(share)), device.num_threads()

    before = local_threads()
    results = device.parallel_map(outer, range(items))
    if device._library("libmklml_intel.so") and device._library("libiomp5.so"):
        assert results == [((share, share), [(1, (1, 1))] * share, share)] * items
    assert local_threads() == before and device.num_threads() == threads


def test_an_error_of_an_item_ends_the_call(use_threads):
    """No other item starts, and the threads are free afterwards."""
    use_threads(3)
    started = []

    def fail(i):
        started.append(i)
        if i == 1:
            raise KeyError(i)
        time.sleep(0.02)

    for call in (device.parallel_map, lambda f, x: list(device.parallel_imap(f, x, 100))):
        started.clear()
        with pytest.raises(KeyError):
            call(fail, range(100))
        count = len(started)
        assert count < 20 and device.num_threads() == 3
        time.sleep(0.05)
        assert len(started) == count
        assert device.parallel_map(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize(
    "threads, count, limit, alone",
    [
        (2, 5, None, 1),
        (2, 4, None, 0),
        (4, 6, None, 2),
        (4, 7, None, 0),
        (4, 9, 2, 1),
        (3, 4, 1, 4),
        (1, 3, 8, 3),
    ],
)
def test_large_items(threads, count, limit, alone, use_threads):
    """In their order, with at most ``limit`` at a time; the last ones with all threads each."""
    use_threads(threads)
    now, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(max(1, min(threads, limit or count, count - alone)))

    def run(i):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        if i < together.parties:
            together.wait(timeout=10)
        time.sleep(0.01)
        with lock:
            now -= 1
        return i, device.num_threads()

    results = list(device.parallel_imap(run, iter(range(count)), count, limit))
    used = [1] * (count - alone) + [threads] * alone
    assert results == list(enumerate(used))
    assert most == together.parties


# Importing Paddle sets OMP_NUM_THREADS to 1.
THREADS_BY_PADDLE = """
import os, zlib, paddle
from paddleseg_segformer import device
assert os.environ["OMP_NUM_THREADS"] == "1" and not device.USER_SET_THREADS
print(device.num_threads(), device.parallel_map(abs, [-1, 2]))
device.tune_cpu()
assert device.num_threads() == len(os.sched_getaffinity(0))
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    "program, environment, output",
    [
        (THREADS_BY_USER, {"OMP_NUM_THREADS": "3"}, "done"),
        (THREADS_BY_PADDLE, {}, "1 [1, 2]"),
    ],
    ids=["set by the user", "set by Paddle"],
)
def test_threads(program, environment, output):
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.strip() == output, result.stderr


@pytest.mark.parametrize(
    "environment, paddle_is_imported, expected",
    [
        ({}, False, False),
        ({"OMP_NUM_THREADS": "4"}, False, True),
        ({"OMP_NUM_THREADS": "4"}, True, True),
        ({"OMP_NUM_THREADS": "1"}, False, True),
        ({"OMP_NUM_THREADS": "1", "PADDLE_TRAINER_ID": "0"}, False, False),
        ({"OMP_NUM_THREADS": "4", "PADDLE_TRAINER_ID": "0"}, False, True),
    ],
)
def test_threads_set_by_the_user(environment, paddle_is_imported, expected, monkeypatch):
    """paddle.distributed.launch sets one thread, too."""
    for name in ("OMP_NUM_THREADS", "PADDLE_TRAINER_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    modules = {"paddle": paddle} if paddle_is_imported else {}
    monkeypatch.setattr(device, "sys", types.SimpleNamespace(modules=modules))
    assert device._user_set_threads() is expected


TUNED = """
import os
import numpy as np
from paddleseg_segformer import device

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

device.available_cpus = lambda: 6
vendor = os.environ.pop("VENDOR", "AuthenticAMD").encode()
device._cpu_info = lambda: b"processor : 0\\nvendor_id : %s\\n" % vendor
device.tune_cpu()
before = megabytes()
np.ones(64 << 20, "uint8")
print(device.num_threads(), megabytes() - before > 32, os.environ.get("MKL_DEBUG_CPU_TYPE"))
"""


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "variables, output",
    [
        ({}, "6 True 5"),
        ({"OMP_NUM_THREADS": "2,1"}, "2 True 5"),
        ({"PADDLE_LOCAL_SIZE": "2"}, "3 True 5"),
        ({"MALLOC_TOP_PAD_": "0"}, "6 False 5"),
        ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, "6 False 5"),
        ({"MKL_DEBUG_CPU_TYPE": "4"}, "6 True 4"),
        ({"VENDOR": "GenuineIntel"}, "6 True None"),
    ],
)
def test_tuning_respects_the_users_variables(variables, output):
    """Number of threads, whether 64 MB of freed memory are kept, and MKL's variable."""
    removed = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    done = python("-c", TUNED, env={**environment, **variables})
    assert done.stdout.strip() == output, done.stderr


@pytest.mark.parametrize("gpus, name", [(0, "cpu"), (2, "gpu")])
def test_the_default_device_is_a_gpu_if_there_is_one(gpus, name, monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: gpus)
    selected = []
    monkeypatch.setattr(paddle, "set_device", selected.append)
    assert device.set_device() == name and selected == [name]
    if not gpus:
        with pytest.raises(ValueError, match="--device gpu:0: no GPU is visible"):
            device.set_device("gpu:0")


@pytest.mark.parametrize("index", ["2", "7", "-1", ""])
def test_a_missing_gpu_is_an_error(index, monkeypatch):
    """On a machine with two GPUs, where Paddle would end the process."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)
    selected = []
    monkeypatch.setattr(paddle, "set_device", selected.append)
    for name in ("gpu", "gpu:0", "gpu:1"):
        assert device.set_device(name) == name
    with pytest.raises(ValueError, match=f"--device gpu:{index}: .* gpu:0 to gpu:1"):
        device.set_device(f"gpu:{index}")
    assert selected == ["gpu", "gpu:0", "gpu:1"]


@pytest.mark.parametrize(
    "result, message",
    [
        (paddle.zeros([3]), "for CUDA 11.8, .* compute capability 9.0; .*pip install"),
        (OSError("External: CUDA error(209), no kernel image"), "compute capability 9.0; "),
        (OSError("External: CUDA error(2), out of memory"), r"cannot use it \(.*out of memory\)"),
    ],
)
def test_a_gpu_without_kernels_is_an_error(result, message, monkeypatch):
    """Paddle only warns of it; its kernels then fail, or leave results as they were."""

    def multiply(*operands):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(paddle, "set_device", lambda name: None)
    monkeypatch.setattr(paddle.version, "cuda", lambda: "11.8")
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(paddle.Tensor, "__mul__", multiply)
    with pytest.raises(ValueError, match=f"^--device gpu: .*{message}"):
        device.set_device("gpu")
    assert device.set_device("cpu") == "cpu"


@pytest.mark.parametrize("name, sets", [("gpu:0", True), ("cpu", False)])
def test_gpu_precision(name, sets, monkeypatch):
    """What a GPU build is asked for; a CPU build has none of it."""
    flags, switches = {}, []
    monkeypatch.setattr(paddle, "get_device", lambda: name)
    monkeypatch.setattr(paddle, "set_flags", flags.update)
    for switch in ("cublas", "cudnn"):
        monkeypatch.setattr(
            paddle.base.core,
            f"set_{switch}_switch",
            lambda on, switch=switch: switches.append((switch, on)),
            raising=False,
        )
    device.set_gpu_precision(deterministic=False, no_tf32=False)
    assert not flags and not switches
    device.set_gpu_precision(deterministic=True, no_tf32=False)
    expected = {"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1}
    assert flags == (expected if sets else {}) and not switches
    device.set_gpu_precision(deterministic=False, no_tf32=True)
    assert switches == ([("cublas", False), ("cudnn", False)] if sets else [])
