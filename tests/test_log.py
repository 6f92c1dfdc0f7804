"""A log that cannot be written neither stops the program nor fills standard error."""

import logging
import os
import re

import pytest
from fork_server import python

from paddleseg_segformer import log

SCRIPT = """
from paddleseg_segformer.log import logger, progress, setup_logging, training_bar
setup_logging()
with training_bar(2, 0) as bar:
    for _ in progress(range(2), 2, "read"):
        logger.info("a line")
        bar.update()
"""


def nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    return {"stdout": writer}


CASES = {
    "no stdout": lambda: {"stdout": None},
    "no stderr": lambda: {"stderr": None},
    "nobody reads": nobody_reads,
    "full disk": lambda: {"stdout": os.open("/dev/full", os.O_WRONLY)},
}


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_a_log_that_cannot_be_written_is_ignored(case):
    done = python("-c", SCRIPT, **CASES[case]())
    assert done.returncode == 0
    # Where there is no standard output, the log is on standard error.
    lines = (done.stderr or "").splitlines()
    assert [line[20:] for line in lines] == ["[INFO] a line"] * 2 * (case == "no stdout")


LINES = """
from paddleseg_segformer import log
log.setup_logging()
log.setup_logging()
log.logger.debug("hidden")
log.logger.info("an item")
log.logger.getChild("data").warning("a warning")
log.logger.error("an error")
with log.log_write_error("a.json"):
    raise OSError(28, "No space left on device")
"""


@pytest.mark.integration
@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_logs_each_message_once_and_others_only_errors(rank):
    done = python("-c", LINES, env={**os.environ, "PADDLE_TRAINER_ID": str(rank)})
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    lines = ["[INFO] an item", "[WARNING] a warning", "[ERROR] an error"]
    lines += ["[WARNING] a.json cannot be written (No space left on device)"]
    lines = lines[2:3] if rank else lines
    expected = "".join(f"{time} {re.escape(line)}\n" for line in lines)
    assert re.fullmatch(expected, done.stdout) and done.stderr == ""


def test_progress_is_logged_every_30_seconds_with_the_remaining_time(monkeypatch, caplog):
    """Of nine items that take 10 seconds each."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(log.time, "monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO, "paddleseg_segformer")
    assert list(log.progress("ninelines", 9, "read")) == list("ninelines")
    assert caplog.messages == ["read: 4/9 | ETA 0:00:50", "read: 8/9 | ETA 0:00:10"]


def test_progress_of_items_of_several_sizes(monkeypatch, caplog):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(log.time, "monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO, "paddleseg_segformer")
    assert list(log.progress(["a", "bbb", "cc"], 6, "read", "letter", len)) == ["a", "bbb", "cc"]
    assert caplog.messages == ["read: 4/6 | ETA 0:00:20"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0:00:00"),
        (59.6, "0:01:00"),
        (3661, "1:01:01"),
        (93784, "1 day, 2:03:04"),
        (1e300, "999999999 days, 0:00:00"),
    ],
)
def test_durations(seconds, text):
    assert log.eta_text(seconds) == text
