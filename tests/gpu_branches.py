"""The package's branches for GPUs, taken on a CPU: ``pytest --force-gpu-branches``.

The functions that tell a GPU from a CPU answer the package's modules, and them alone, as on a
machine with one GPU: Paddle itself computes on the CPU. Where the package selects the CPU, it gets
the CPU's branches until the next test.
"""

import ast
import os
import sys
import zlib  # noqa: F401  (before Paddle 2.6, as in device.py)
from pathlib import Path

import paddle
import paddle.nn.functional as F
import pytest
from paddle.autograd import PyLayer

import paddleseg_segformer
from paddleseg_segformer.ops import attention

ENVIRONMENT = "FORCE_GPU_BRANCHES"  # tells the processes that tests launch to call install
PACKAGE = Path(paddleseg_segformer.__file__).parent
# The functions that choose a branch, by the names under which the package calls them.
DECISIONS = {"is_cpu_place", "is_gpu_place", "get_device", "get_device_capability"}
DECISIONS |= {"is_compiled_with_cuda", "device_count", "num_threads", "has_gpu", "on_gpu"}

# Where the forced tests do not select a GPU or use the CPU on purpose, the tests that do.
ON_CPU = "deploy/test_export.py::test_paddle_inference_keeps_paddles_number_of_threads"
SAMPLES = "ops/test_parallel_samples.py::test_results_are_those_of_the_whole_batch"
ELSEWHERE = {
    "cli/doctor:main": "doctor/test_command.py::test_a_gpu_that_paddle_cannot_use_is_an_error",
    "deploy/export:_on_cpu": (
        "deploy/test_export.py::test_export_uses_the_tuned_cpu_and_restores_the_device"
    ),
    "device:has_gpu": "test_device.py::test_the_default_device_is_a_gpu_if_there_is_one",
    "device:set_device": "test_device.py::test_a_missing_gpu_is_an_error",
    "doctor/machine:check_tf32": "doctor/test_gpu_checks.py::test_tf32",
    "doctor/operators:check_attention_kernel": "doctor/test_gpu_checks.py::test_attention_kernel",
    "inference/backends:OnnxRuntime.__init__": ON_CPU,
    "inference/backends:OpenVino.__init__": ON_CPU,
    "inference/backends:PaddleInference.__init__": ON_CPU,
    "ops/parallel_samples:_ParallelSamples.forward": SAMPLES,
    "ops/parallel_samples:trains_in_threads": SAMPLES,
    "ops/rows:map_rows": "ops/test_rows.py::test_strips",
}

_selected = "gpu:0"  # the device that the package has selected
visited = set()  # (file, line) of the package's calls that were answered with a GPU


def install():
    """Force the branches in this process."""
    place, cuda = paddle.base.core.Place, paddle.device.cuda
    for owner, name, answer in (
        (place, "is_cpu_place", False),
        (place, "is_gpu_place", True),
        (paddle, "get_device", "gpu:0"),
        (paddle, "is_compiled_with_cuda", True),
        (cuda, "device_count", 1),
        (attention, "get_device_capability", (9, 0)),
    ):
        setattr(owner, name, _answering(getattr(owner, name), answer))
    paddle.set_device = _selecting(paddle.set_device)
    paddle.CUDAPinnedPlace = paddle.CPUPlace
    paddle.Tensor.cuda = lambda tensor, *_, **__: tensor.clone()
    paddle.nn.SyncBatchNorm.forward = _synchronized_batch_norm
    os.environ[ENVIRONMENT] = "1"


def _answering(function, answer):
    def ask(*arguments):
        frame = sys._getframe(1)
        if not _selected.startswith("gpu") or not _in_package(frame):
            return function(*arguments)
        # Functions of the package such as num_threads ask on behalf of their callers.
        while _in_package(frame):
            visited.add((frame.f_code.co_filename, frame.f_lineno))
            if frame.f_code.co_name not in DECISIONS:
                break
            frame = frame.f_back
        return answer

    return ask


def _selecting(set_device):
    def select(name):
        global _selected
        if not _in_package(sys._getframe(1)):
            return set_device(name)
        _selected = "gpu:0" if name == "gpu" else name
        return None if name.startswith("gpu") else set_device(name)

    return select


def _in_package(frame):
    return frame.f_globals.get("__name__", "").startswith("paddleseg_segformer.")


class _SumOfProcesses(PyLayer):
    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        paddle.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, upstream):
        total = upstream.clone()
        paddle.distributed.all_reduce(total)
        return total


def _synchronized_batch_norm(layer, x):
    """``SyncBatchNorm.forward``, which has no kernel on a CPU, by its definition."""
    if layer._use_global_stats or not layer.training:
        statistics = layer._mean, layer._variance
        return F.batch_norm(x, *statistics, layer.weight, layer.bias, epsilon=layer._epsilon)
    count = x.size // x.shape[1] * paddle.distributed.get_world_size()
    mean = _SumOfProcesses.apply(x.sum([0, 2, 3])) / count
    centered = x - mean.reshape([1, -1, 1, 1])
    variance = _SumOfProcesses.apply((centered**2).sum([0, 2, 3])) / count
    for average, value in ((layer._mean, mean), (layer._variance, variance)):
        momentum = layer._momentum
        average.set_value(momentum * average + (1 - momentum) * value.detach())
    scale = layer.weight / (variance + layer._epsilon).sqrt()
    return centered * scale.reshape([1, -1, 1, 1]) + layer.bias.reshape([1, -1, 1, 1])


class Plugin:
    """Forces the branches in all tests but those marked with ``cpu_branch``."""

    def __init__(self, config):
        self.requires_all = config.getoption("require_all_gpu_branches")
        install()

    def pytest_collection_modifyitems(self, config, items):
        of_cpu = [item for item in items if item.get_closest_marker("cpu_branch")]
        config.hook.pytest_deselected(items=of_cpu)
        items[:] = [item for item in items if item not in of_cpu]

    def pytest_runtest_setup(self):
        global _selected
        _selected = "gpu:0"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):  # a worker of pytest-xdist has ended
        visited.update(map(tuple, getattr(node, "workeroutput", {}).get("visited", ())))

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["visited"] = sorted(visited)
        elif self.requires_all and not_visited() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for branch in not_visited() if self.requires_all else ():
            terminalreporter.line(f"{branch}: no test took the branch for GPUs", red=True)


def not_visited():
    """The branches of ``decisions`` that no test has taken, but for those tested ``ELSEWHERE``."""
    return [
        f"{name}, line {lines[0]}"
        for file, lines, name in decisions()
        if name not in ELSEWHERE and visited.isdisjoint((file, line) for line in lines)
    ]


def decisions():
    """The package's calls of ``DECISIONS``: (file, lines, name) of each; see ``find``."""

    def is_decision(node):
        function = getattr(node, "func", None)
        return getattr(function, "attr", getattr(function, "id", None)) in DECISIONS

    return find(is_decision)


def dtype_comparisons():
    """The comparisons of a dtype in the package, as of ``decisions``."""
    return find(
        lambda node: (
            isinstance(node, ast.Compare)
            and any(getattr(inner, "attr", None) == "dtype" for inner in ast.walk(node))
        )
    )


def find(matches):
    """The package's nodes that match: path, lines, and a name such as ``ops/resize:bands``."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        scopes = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        for node in filter(matches, ast.walk(tree)):
            around = [s.name for s in scopes if s.lineno <= node.lineno <= s.end_lineno]
            module = path.relative_to(PACKAGE).with_suffix("").as_posix()
            lines = range(node.lineno, node.end_lineno + 1)
            found.append((str(path), lines, f"{module}:{'.'.join(around)}"))
    return found
