"""A log that cannot be written neither stops the program nor fills standard error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
from paddleseg_segformer.log import logger, progress, setup_logging, training_bar
setup_logging()
with training_bar(2, 0) as bar:
    for _ in progress(range(2), 2, "read"):
        logger.info("a line")
        bar.update()
"""


def closed(number):
    return {"preexec_fn": lambda: os.close(number)}


def nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    return {"stdout": writer}


CASES = {
    "no stdout": lambda: closed(1),
    "no stderr": lambda: closed(2),
    "nobody reads": nobody_reads,
    "full disk": lambda: {"stdout": os.open("/dev/full", os.O_WRONLY)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_log_that_cannot_be_written_is_ignored(case, tmp_path):
    with open(tmp_path / "errors", "w") as errors:
        keywords = {"stdout": subprocess.PIPE, "stderr": errors, **CASES[case]()}
        done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, **keywords)
    assert done.returncode == 0
    assert "Traceback" not in (tmp_path / "errors").read_text()
