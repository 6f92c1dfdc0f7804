"""What the fuzzers share. Each is a script, ``python tests/fuzz/NAME.py [libFuzzer's options]``:

    make fuzz SECONDS=300                                       # all of them, after each other
    python tests/fuzz/checkpoints.py -max_total_time=300        # one
    python tests/fuzz/checkpoints.py crash-…                    # what it found, once more

It ends with an error, and keeps the input as a file ``crash-…``, where an input does what it must
not. Atheris has no wheel for Windows and macOS; requirements-fuzz.txt names the version.
"""

import logging
import resource
import sys
import tempfile
from pathlib import Path

import atheris

# Of what it takes to start; a small file has no reason to ask for more.
GIGABYTES = 2


def fuzz(one_input, seeds):
    """Call ``one_input`` with mutated bytes until it raises, or libFuzzer's options end it.

    Args:
        one_input: Raises where its bytes do what they must not.
        seeds: Bytes to start from.
    """
    logging.disable()
    used = 1024 * int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + (GIGABYTES << 30),) * 2)
    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(seeds):
            Path(folder, f"seed{i}").write_bytes(seed)
        corpus = [] if any(not option.startswith("-") for option in sys.argv[1:]) else [folder]
        atheris.Setup([*sys.argv, "-timeout=30", "-rss_limit_mb=4096", *corpus], one_input)
        atheris.Fuzz()


def check_error(error):
    """An InputError is one printable line, and hides no want of memory."""
    if not str(error).isprintable():
        raise AssertionError(f"the message is not one printable line: {error!r}")
    if isinstance(error.__cause__, MemoryError):
        raise AssertionError("it asked for too much memory") from error
