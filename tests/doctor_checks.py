"""Checks of every outcome, in a module that the processes of the checks can import."""

import os
import signal
import time

from paddleseg_segformer.doctor import Result


def override(context):
    value = os.environ.get("NVIDIA_TF32_OVERRIDE", "unset")
    return Result(True, value, "any", {"value": float("nan")})


def bad(context):
    return Result(False, "2", "≤ 1")


def unavailable(context):
    return Result(None, "needs torch")


def raises(context):
    raise ValueError("no such\nkernel")


def crashes(context):
    os.write(1, b"written by C++ code")
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(context):
    os._exit(3)


def hangs(context):
    time.sleep(600)
