"""Run tools in forks of one process that has imported the package, which takes seconds.

Reads a job in JSON from each line of standard input and prints the exit code, negative after a
signal, null after a timeout. No operator runs before a fork: Paddle's threads would not survive it.
"""

import contextlib
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback

MODULES = ("cli.common", "data.validate", "data.scenes")
OPTIONAL = ("onnx", "onnxruntime")


def main():
    for name in (*(f"paddleseg_segformer.{module}" for module in MODULES), *OPTIONAL):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            run(job)
        print(json.dumps(wait(child, job["timeout"])), flush=True)


def run(job):
    """Run the tool in this process; does not return."""
    os.setsid()
    for descriptor, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    for package in job["hidden"]:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = None  # import then raises ModuleNotFoundError
    if job["max_file_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_bytes"],) * 2)
    sys.argv = [job["script"], *job["arguments"]]
    code = 1
    try:
        runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child, timeout):
    """The child's exit code; it and its children are killed after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    main()
