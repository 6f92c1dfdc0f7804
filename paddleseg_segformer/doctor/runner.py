"""Running checks in processes of their own, so that a crash or a hang is a failed row."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import device
from ..errors import one_line

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"
TIMEOUT = 300  # seconds; each check takes less than 60 on two CPU cores
EXIT_TIMEOUT = 20  # seconds, for a process without further checks
MAX_LOG = 4000  # characters of a failed check's output
LOG_FILE = "log.txt"


class Context(NamedTuple):
    """What a check may know and use.

    Attributes:
        device: Paddle's name of the device, such as ``"gpu:0"``.
        gpus: The number of GPUs that Paddle sees, 0 for checks on a CPU.
        folder: A folder that all checks share, for data and runs.
    """

    device: str
    gpus: int
    folder: Path


class Result(NamedTuple):
    """Result of a check.

    Attributes:
        passed: Whether the measured figures are within their bound; None if the check cannot run
            here.
        measured: They, as text.
        bound: The bound, as text; empty for information.
        details: All figures, plain JSON.
    """

    passed: bool | None
    measured: str
    bound: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's field, never changed)


class Check(NamedTuple):
    """A check of the machine.

    Attributes:
        name: Its row's name.
        function: Gets the ``Context`` and returns a ``Result``; an exception is a failure. It must
            be a function of a module, or a partial of one, to reach another process.
        gpus: The number of GPUs that it needs.
        environment: Environment variables of its process.
        alone: Whether it needs a process of its own, such as to measure memory.
    """

    name: str
    function: Callable[[Context], Result]
    gpus: int = 0
    environment: dict[str, str] = {}  # noqa: RUF012  (as above)
    alone: bool = False


class Row(NamedTuple):
    """A row of the table: a check's name, PASS, FAIL or SKIP, its ``Result``, seconds, output."""

    name: str
    status: str
    measured: str
    bound: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012  (as above)
    seconds: float = 0.0
    log: str = ""


def run_checks(checks: list[Check], context: Context, timeout: float = TIMEOUT) -> Iterator[Row]:
    """Run checks one after another, and yield the ``Row`` of each as soon as it is known.

    A check that raises an exception, ends its process or takes longer than ``timeout`` seconds
    fails; the next one runs in a new process, since a GPU is unusable after an error.
    """
    checks = list(checks)
    while checks:
        if checks[0].gpus > context.gpus:
            check = checks.pop(0)
            needs = "needs a GPU" if check.gpus == 1 else f"needs {check.gpus} GPUs"
            yield Row(check.name, SKIP, needs)
            continue
        batch = _next_batch(checks, context)
        for row in _run_batch(batch, context, timeout):
            checks.pop(0)
            yield row


def _next_batch(checks, context):
    """The first checks that may share a process."""
    count, first = 1, checks[0]
    while count < len(checks) and not first.alone:
        check = checks[count]
        if check.alone or check.environment != first.environment or check.gpus > context.gpus:
            break
        count += 1
    return checks[:count]


def _run_batch(checks, context, timeout):
    """Yield the rows of the checks in a new process, up to the first that leaves it unusable."""
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    receiver, sender = spawn.Pipe(duplex=False)
    with _environment(checks[0].environment):
        process = spawn.Process(target=_work, args=(sender, checks, context))
        process.start()
    sender.close()  # else the end of the process would not be noticed
    try:
        for check in checks:
            start, row = time.monotonic(), None
            try:
                row = receiver.recv() if receiver.poll(timeout) else None
                reason = f"no result after {timeout:g} s"
            except EOFError:
                process.join()
                reason = f"its process ended with {_exit_text(process.exitcode)}"
            if row is None:
                log = _log_tail(context)
                process.kill()
                yield Row(check.name, FAIL, reason, "", {}, time.monotonic() - start, log)
                return
            yield row
            if row.log:
                return
    finally:
        receiver.close()
        process.join(EXIT_TIMEOUT)
        process.kill()
        process.join()


def _work(sender, checks, context):
    """The process of some checks: send the row of each, up to the first exception."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = open(context.folder / LOG_FILE, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # of C++ code, too
        os.dup2(log.fileno(), stream.fileno())
    device.tune_cpu()
    device.set_device(context.device)
    for check in checks:
        start = time.monotonic()
        try:
            result = check.function(context)
        except Exception as error:
            traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            reason = f"{type(error).__name__}: {one_line(error)}"
            row = Row(check.name, FAIL, reason, "", {}, 0.0, _log_tail(context))
        else:
            status = SKIP if result.passed is None else PASS if result.passed else FAIL
            row = Row(check.name, status, result.measured, result.bound, _plain(result.details))
        sender.send(row._replace(seconds=time.monotonic() - start))
        if row.log:
            return


def _plain(value):
    """Plain JSON, which has no NaN and no infinity: they become text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _log_tail(context):
    with contextlib.suppress(OSError):
        text = (context.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
        return text[-MAX_LOG:] or "no output"
    return "no output"


def _exit_text(code):
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _environment(variables):
    """Environment variables that a process started within gets."""
    before = dict(os.environ)
    if not device.USER_SET_THREADS:  # Paddle's 1 would look like the user's in the new process
        os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
