"""Hostile files take memory and time within the bounds that the documentation states."""

import json

import pytest
from fork_server import python

from .hostile_files import CHECKPOINTS, CONFIGS, IMAGES

# Bytes of memory for each byte of the file, and a constant; seconds likewise, on a slow machine.
MEMORY = {"checkpoint": (20, 200e6), "config": (0, 300e6), "image": (20, 200e6)}
SECONDS = {"checkpoint": (2e-6, 8), "config": (0, 12), "image": (2e-6, 8)}
CASES = [
    (kind, name, make)
    for kind, files in (("checkpoint", CHECKPOINTS), ("config", CONFIGS), ("image", IMAGES))
    for name, make in files.items()
]
MEASURE = """
import json, logging, re, sys, time
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.weights import read_weights

def memory(key):
    return 1024 * int(open("/proc/self/status").read().split(f"{key}:")[1].split()[0])

logging.disable()
read = {"checkpoint": read_weights, "config": load_config, "image": read_image}[sys.argv[1]]
open("/proc/self/clear_refs", "w").write("5")  # the peak of memory begins here
before, start, message = memory("VmRSS"), time.process_time(), ""
try:
    read(sys.argv[2])
except InputError as error:
    message = str(error)
print(json.dumps([message, memory("VmHWM") - before, time.process_time() - start]))
"""


@pytest.mark.integration
@pytest.mark.parametrize("kind, name, make", CASES, ids=[name for _, name, _ in CASES])
def test_memory_and_time_are_bounded(kind, name, make, tmp_path):
    path = tmp_path / f"file{'.yaml' if kind == 'config' else ''}"
    path.write_bytes(make())
    size = path.stat().st_size
    result = python("-c", MEASURE, kind, path)
    assert result.returncode == 0, result.stderr
    message, memory, seconds = json.loads(result.stdout.splitlines()[-1])
    figures = f"{size / 1e6:.2f} MB: {memory / 1e6:.0f} MB, {seconds:.2f} s, {message}"
    print(figures)
    assert message.startswith(f"{path}: ") and message.endswith(".") and len(message) < 2000
    for actual, (factor, constant) in ((memory, MEMORY[kind]), (seconds, SECONDS[kind])):
        assert actual <= factor * size + constant, figures
