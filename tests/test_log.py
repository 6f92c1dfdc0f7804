"""A log that cannot be written neither stops the program nor fills standard error."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paddleseg_segformer import log

ROOT = Path(__file__).parents[1]
CASES = ["no stdout", "no stderr", "nobody reads", "full disk"]
# Forks a process per case, which logs, and ends as Python ends it, with a last flush.
SCRIPT = """
import json
import os
import sys
from paddleseg_segformer.log import logger, progress, setup_logging, training_bar

def prepare(case):
    if case.startswith("no st"):  # as Python starts with closed streams
        name = case[3:]
        os.close(1 if name == "stdout" else 2)
        setattr(sys, name, None)
    elif case == "nobody reads":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

codes = {}
for case in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        codes = None
        os.dup2(os.open(f"{sys.argv[2]}/{case}", os.O_WRONLY | os.O_CREAT), 2)
        prepare(case)
        break
    codes[case] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if codes is None:
    setup_logging()
    with training_bar(2, 0) as bar:
        for _ in progress(range(2), 2, "read"):
            logger.info("a line")
            bar.update()
else:
    print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The exit code of each case, and the folder of the standard errors."""
    folder = tmp_path_factory.mktemp("errors")
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_a_log_that_cannot_be_written_is_ignored(case, logged):
    codes, folder = logged
    assert codes[case] == 0
    # Where there is no standard output, the log is on standard error.
    lines = (folder / case).read_text().splitlines()
    assert [line[20:] for line in lines] == ["[INFO] a line"] * 2 * (case == "no stdout")


@pytest.mark.parametrize("rank, expected", [(0, "[INFO] a\n[ERROR] b\n"), (1, "[ERROR] b\n")])
def test_only_the_first_process_logs_more_than_errors(rank, expected, monkeypatch, capsys):
    for name in ("handlers", "propagate", "level"):  # restored afterwards
        monkeypatch.setattr(log.logger, name, getattr(log.logger, name))
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(log.paddleseg.utils.logger, "log_level", 2)
    monkeypatch.setattr(log, "get_rank", lambda: rank)
    log.setup_logging()
    log.logger.info("a")
    log.logger.error("b")
    log.logger.setLevel(logging.NOTSET)  # clears what the logger has cached
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert "".join(line[20:] for line in lines) == expected


def test_progress_is_logged_every_30_seconds(monkeypatch, caplog):
    """Of seven items, each takes 20 seconds."""
    now = [0.0]
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(log, "_is_terminal", lambda stream: False)
    caplog.set_level("INFO", "paddleseg_segformer")
    items = []
    for item in log.progress("abcdefg", 7, "read"):
        items.append(item)
        now[0] += 20
    assert items == list("abcdefg")
    assert caplog.messages == [
        f"read: {done}/7 | ETA {eta}"
        for done, eta in ((2, "0:01:40"), (4, "0:01:00"), (6, "0:00:20"))
    ]


def test_durations():
    assert log.eta_text(59.6) == "0:01:00" and log.eta_text(93784) == "1 day, 2:03:04"
