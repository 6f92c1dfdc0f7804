"""Shared by the fuzz targets, which are scripts, ``python tests/fuzz/NAME.py [OPTIONS]``:

    make fuzz SECONDS=300                                       # all targets in turn
    python tests/fuzz/checkpoints.py -max_total_time=300        # one target
    python tests/fuzz/checkpoints.py crash-…                    # reproduce a crash

The options are libFuzzer's. On a failure, the target exits with an error and saves the input in a
file ``crash-…``. Atheris has no wheels for Windows and macOS; see requirements-fuzz.txt.
"""

import logging
import resource
import sys
import tempfile
from pathlib import Path

import atheris

MAX_MEMORY_GB = 2  # beyond that of the imports; a small file must not allocate more


def fuzz(one_input, seeds):
    """Call ``one_input`` with mutated bytes until it raises, or libFuzzer's limits are reached.

    Args:
        one_input: Function of bytes that raises if they are handled wrongly.
        seeds: The initial corpus, bytes.
    """
    logging.disable()
    used = 1024 * int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + (MAX_MEMORY_GB << 30),) * 2)
    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(seeds):
            Path(folder, f"seed{i}").write_bytes(seed)
        corpus = [] if any(not option.startswith("-") for option in sys.argv[1:]) else [folder]
        atheris.Setup([*sys.argv, "-timeout=120", "-rss_limit_mb=4096", *corpus], one_input)
        atheris.Fuzz()


def check_error(error):
    """Check that an InputError is one printable line, and was not caused by a lack of memory."""
    if not str(error).isprintable():
        raise AssertionError(f"the message is not one printable line: {error!r}")
    if isinstance(error.__cause__, MemoryError):
        raise AssertionError("too much memory was allocated") from error
