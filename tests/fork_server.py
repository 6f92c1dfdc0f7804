"""Python programs in forks of one process that has imported the package, which takes seconds.

``python("tools/train.py", ...)`` is ``subprocess.run([sys.executable, "tools/train.py", ...])``
with captured text, but costs a fork. Each fork gets the environment of the caller, of which Paddle
has read its own variables (``FLAGS_...``) before. No operator runs in the server: Paddle's threads
would not survive a fork. There is one server per test process (pytest-xdist: per worker).
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import io
import json
import multiprocessing.util
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 120  # seconds a program may take
POLL = 0.005  # seconds between looks for ended programs
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031  # a name in fcntl from Python 3.10 on
# Imported before the forks, if installed. Not compat_run, whose import patches PaddleSeg.
MODULES = ("paddleseg_segformer.cli.common", "paddleseg_segformer.engine")
MODULES += ("paddleseg_segformer.data.validate", "paddleseg_segformer.data.scenes")
MODULES += ("paddleseg_segformer.weights.convert", "onnx", "onnxruntime")


def python(*arguments, timeout=TIMEOUT, **options):
    """Run ``python SCRIPT …``, ``python -m MODULE …`` or ``python -c CODE …`` to its end.

    Args:
        arguments: Of the interpreter.
        timeout: Seconds, after which it and its children are killed and TimeoutExpired is raised.
        options: Of ``start``.

    Returns:
        A ``subprocess.CompletedProcess`` with output and errors as text.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = start(*arguments, **{"stdout": out, "stderr": errors, **options})
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            print(_text(out), _text(errors))
            raise
        code = process.returncode
        return subprocess.CompletedProcess(arguments, code, _text(out), _text(errors))


def start(
    *arguments,
    cwd=ROOT,
    env=None,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    hidden=(),
    max_file_bytes=None,
):
    """Start a program like ``python``; returns its ``Process``.

    Args:
        arguments: Of the interpreter.
        cwd: Its working directory.
        env: Its environment (default: that of this process).
        stdout, stderr: A file, a descriptor, PIPE, or None for a closed stream.
        hidden: Packages that it cannot import.
        max_file_bytes: Limit of the files that it writes.
    """
    job = {
        "arguments": list(map(str, arguments)),
        "cwd": str(cwd),
        "env": dict(os.environ if env is None else env),
        "hidden": list(hidden),
        "max_file_bytes": max_file_bytes,
        "closed": [n for n, stream in ((1, stdout), (2, stderr)) if stream is None],
    }
    readers, descriptors = {}, [os.open(os.devnull, os.O_RDONLY)]
    for name, stream in (("stdout", stdout), ("stderr", stderr), ("status", subprocess.PIPE)):
        if stream is None:
            descriptors.append(os.open(os.devnull, os.O_WRONLY))
        elif stream == subprocess.PIPE:
            reader, writer = os.pipe()
            with contextlib.suppress(OSError):
                fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
            readers[name] = reader
            descriptors.append(writer)
        else:
            descriptors.append(os.dup(stream if isinstance(stream, int) else stream.fileno()))
    connection = _server()
    socket.send_fds(connection, [json.dumps(job).encode()], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return Process(arguments, int(connection.recv(16)), readers)


class Process:
    """A started program, with the interface of ``subprocess.Popen``.

    Its output waits in pipes of 1 MB, so that a program that prints more must be read line by line.
    """

    def __init__(self, args, pid, readers):
        self.args, self.pid, self.returncode = args, pid, None
        files = {n: os.fdopen(r, errors="replace") for n, r in readers.items()}
        self._status = files["status"]
        self.stdout, self.stderr = (files.get(name) for name in ("stdout", "stderr"))

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            with self._status:
                self.returncode = int(self._status.read())
        return self.returncode

    def communicate(self, timeout=None):
        self.wait(timeout)
        found = []
        for stream in (self.stdout, self.stderr):
            found.append(None if stream is None else stream.read())
            if stream is not None:
                stream.close()
        return tuple(found)

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _text(file):
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r\n", "\n")


@functools.cache
def _server():
    """The connection to this process's server, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C ends pytest, and so the server
    )
    theirs.close()
    assert ours.recv(16) == b"ready"
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def serve(connection):
    """Fork for each job; returns the job and its descriptors in the fork, None at the end."""
    running = {}  # descriptors to write exit codes to, by process id
    while True:
        if select.select([connection], [], [], POLL if running else None)[0]:
            message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 4)
            child = os.fork() if message else None
            if not child:
                for pid, status in running.items():
                    os.close(status)
                    if child is None:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGKILL)
                connection.close()
                return (json.loads(message), descriptors) if message else None
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            running[child] = descriptors[3]
            connection.send(str(child).encode())
        for child in list(running):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                code, descriptor = os.waitstatus_to_exitcode(status), running.pop(child)
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                    os.write(descriptor, str(code).encode())
                os.close(descriptor)


def run(job, descriptors):
    """Run the program in this process; returns its exit code."""
    try:
        prepare(job, descriptors)
        execute(*job["arguments"])
        code = None
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, (int, type(None))):
        print(code, file=sys.stderr)
        code = 1
    multiprocessing.util._exit_function()  # ends its daemons
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    return code or 0


def prepare(job, descriptors):
    """Give this process the streams, environment and limits of the job."""
    os.setsid()
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if number in job["closed"]:
            os.close(number)
            setattr(sys, name, None)
        else:  # not the server's, which may be line-buffered
            buffer = open(number, "wb", closefd=False)  # noqa: SIM115
            errors = "strict" if number == 1 else "backslashreplace"
            setattr(sys, name, io.TextIOWrapper(buffer, "utf-8", errors, write_through=number == 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    from paddleseg_segformer import device

    device.USER_SET_THREADS = "OMP_NUM_THREADS" in os.environ
    for package in job["hidden"]:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = None  # import then raises ModuleNotFoundError
    if job["max_file_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_bytes"],) * 2)


def execute(first, *rest):
    """Run a file, ``-m MODULE`` or ``-c CODE`` like the interpreter."""
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = list(rest), os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def main():
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the forks' collections need not touch, and so copy, what is here
    connection.send(b"ready")
    job = serve(connection)
    if job:
        os._exit(run(*job))  # not sys.exit, which waits for threads that the fork does not have


if __name__ == "__main__":
    main()
