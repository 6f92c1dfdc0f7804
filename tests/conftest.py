"""For all tests: the logger, CPU threads, branches for GPUs, and options about skipped tests."""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpu_branches
import pytest

from paddleseg_segformer import device
from paddleseg_segformer.log import logger

device.tune_cpu()


@pytest.fixture(autouse=True)
def restored_logger():
    """Undoes ``setup_logging`` after a test, which would hide log lines from ``caplog``."""
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def use_threads(monkeypatch):
    """A function that sets the number of CPU threads as ``tune_cpu`` does, for one test."""
    with contextlib.ExitStack() as pools:

        def use(threads):
            pool = ThreadPoolExecutor(threads, "operators", device._start_thread)
            monkeypatch.setattr(device, "_pool", pools.enter_context(pool))
            monkeypatch.setattr(device, "_threads", threads)

        yield use


def pytest_addoption(parser):
    parser.addoption("--list-skipped", metavar="FILE", help="write the skipped tests' ids to FILE")
    parser.addoption(
        "--allowed-skips",
        metavar="REGEX",
        help="fail if a test is skipped for a reason that does not match; '^$' allows none",
    )
    parser.addoption(
        "--force-gpu-branches",
        action="store_true",
        help="take the package's branches for GPUs, see tests/gpu_branches.py",
    )
    parser.addoption(
        "--require-all-gpu-branches",
        action="store_true",
        help="fail if the tests take not all of them",
    )


def pytest_configure(config):
    if config.getoption("force_gpu_branches"):
        config.pluginmanager.register(gpu_branches.Plugin(config))
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers report to the main process
        config.pluginmanager.register(SkippedTests(config))


class SkippedTests:
    """Collects the skipped tests, and the modules of which all tests are skipped."""

    def __init__(self, config):
        self.list_path = config.getoption("list_skipped")
        self.allowed = config.getoption("allowed_skips")
        self.reasons = {}  # by test id

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.reasons[report.nodeid] = report.longrepr[2].replace("Skipped: ", "", 1)

    pytest_collectreport = pytest_runtest_logreport

    def unexpected(self):
        if self.allowed is None:
            return []
        return [i for i, reason in self.reasons.items() if not re.search(self.allowed, reason)]

    def pytest_sessionfinish(self, session):
        if self.list_path:
            path = Path(self.list_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{i}\n" for i in self.reasons), encoding="utf-8")
        if self.unexpected() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for nodeid in self.unexpected():
            terminalreporter.line(f"{nodeid}: must not be skipped here", red=True)
