"""Parallel CPU work in processes set up by tune_cpu, and the choice of a device."""

import subprocess
import sys

import paddle
import pytest

from paddleseg_segformer import device

PROGRAMS = {
    "order, errors and gradients": """
        assert device.num_threads() == 3
        squares = device.parallel_map(lambda i: i * i, range(50))
        assert squares == [i * i for i in range(50)]
        tensor = paddle.ones([2])
        tensor.stop_gradient = False
        assert all(t.stop_gradient for t in device.parallel_map(lambda i: tensor * i, range(9)))
        assert not (tensor * 2).stop_gradient
        try:
            device.parallel_map(lambda i: 1 // i, [1, 0])
        except ZeroDivisionError:
            print("done")
    """,
    "a forked child": """
        import os
        device.parallel_map(lambda i: i, range(20))
        child = os.fork()
        if child == 0:
            os._exit(7 if device.parallel_map(lambda i: i, range(5)) == list(range(5)) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print("done")
    """,
    "a forked child that calls tune_cpu": """
        import os, signal
        device.parallel_map(lambda i: i, range(20))
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            device.tune_cpu()
            assert device.num_threads() == 3
            os._exit(7 if device.parallel_map(lambda i: i, range(5)) == list(range(5)) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print("done")
    """,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_parallel_map(program):
    lines = ["from paddleseg_segformer import device", "device.tune_cpu()", "import paddle"]
    lines += [line[8:] for line in PROGRAMS[program].splitlines()]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={"OMP_NUM_THREADS": "3", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.strip() == "done", result.stderr


def test_without_tuning_there_is_one_thread():
    program = "from paddleseg_segformer import device; print(device.parallel_map(abs, [-1, 2]))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[1, 2]", result.stderr


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
