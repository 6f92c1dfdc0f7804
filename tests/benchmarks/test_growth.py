"""benchmarks/growth.py: exponents and parallel shares of times with known laws."""

import json

from fork_server import python

FITS = """
import json, sys
sys.path.insert(0, "benchmarks")
import growth
power = [5 * n**1.5 for n in (1, 4, 16)]
amdahl = [8 * (0.25 + 0.75 / n) for n in (1, 2, 4)]
print(json.dumps([growth.exponent([1, 4, 16], power), growth.parallel_share([1, 2, 4], amdahl)]))
growth.available_cpus = lambda: 6
print(growth.thread_counts())
growth.available_cpus = lambda: 8
print(growth.thread_counts())
"""


def test_fits_and_thread_counts():
    done = python("-c", FITS)
    assert done.returncode == 0, done.stderr
    fits, *counts = map(json.loads, done.stdout.splitlines())
    assert [round(value, 9) for value in fits] == [1.5, 0.75]
    assert counts == [[1, 2, 4, 6], [1, 2, 4, 8]]


def test_more_classes_than_labels_can_have_are_an_error():
    config = "configs/segformer_mit-b0_512x512_160k_ade20k.yaml"
    done = python("benchmarks/growth.py", "--config", config, "--classes", "19", "256")
    assert done.returncode == 2 and not done.stdout
    assert "--classes: must be at most 255" in done.stderr
