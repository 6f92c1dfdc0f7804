"""What the machine has: versions, device, driver, memory, TF32."""

from __future__ import annotations

import os
import platform
import subprocess

import paddle

from .. import device
from .runner import Result


def check_versions(context):
    """The versions of the packages; a required one that is missing has been an error before."""
    versions = device.versions()
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Result(True, text, "", versions)


def check_device(context):
    """The device that training uses, and its memory."""
    if context.gpus:
        properties = paddle.device.cuda.get_device_properties()
        memory = properties.total_memory
        major, minor = properties.major, properties.minor
        measured = f"{context.gpus} x {properties.name}, {memory / 1e9:.0f} GB, {major}.{minor}"
        details = {"name": properties.name, "memory": memory, "capability": [major, minor]}
        return Result(True, measured, "", {**details, "gpus": context.gpus})
    cpus = device.available_cpus()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    measured = f"{cpus} CPUs ({platform.machine()}), {memory / 1e9:.0f} GB"
    return Result(True, measured, "", {"cpus": cpus, "memory": memory})


def check_driver(context):
    """The versions of driver, CUDA and cuDNN; Paddle's own check of its installation."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        driver = driver.stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    cuda, cudnn = paddle.version.cuda(), paddle.version.cudnn()
    measured = f"driver {driver}, CUDA {cuda}, cuDNN {cudnn}"
    return Result(True, measured, "", {"driver": driver, "cuda": cuda, "cudnn": cudnn})


def check_tf32(context):
    """Whether products of float32 are computed in TF32."""
    off = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
    off = off or paddle.device.cuda.get_device_capability() < (8, 0)
    states = {}
    for name, switch in (("matrix products", "cublas"), ("convolutions", "cudnn")):
        read = getattr(paddle.base.core, f"get_{switch}_switch", None)
        is_on = not off and (read() if read else None)
        states[name] = "unknown" if is_on is None else "on" if is_on else "off"
    return Result(True, ", ".join(f"{name} {state}" for name, state in states.items()), "", states)
