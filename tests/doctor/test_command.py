"""``segformer doctor``: table, exit code, JSON file, device."""

import json
import shutil
import sys

import pytest

from paddleseg_segformer.cli import doctor
from paddleseg_segformer.doctor import FAIL, PASS, SKIP, Row, all_checks
from paddleseg_segformer.errors import InputError, RunError

ROWS = [
    Row("a", PASS, "error 1e-7", "≤ 1e-5", {"result": 1e-7}, 2.0),
    Row("b", SKIP, "needs a GPU"),
    Row("c", FAIL, "3", "≤ 2", {}, 1.0, "the output"),
]


def run(monkeypatch, rows, *flags):
    contexts = []

    def run_checks(checks, context):
        contexts.append(context)
        return rows

    monkeypatch.setattr(doctor, "run_checks", run_checks)
    monkeypatch.setattr(sys, "argv", ["doctor", *flags])
    doctor.main()
    return contexts[0]


def test_a_failed_check_is_a_row_and_an_error_of_the_run(monkeypatch, tmp_path, capsys):
    file = tmp_path / "doctor.json"
    with pytest.raises(RunError, match=r"1 of 3 checks failed; .*doctor.json has their output\.$"):
        run(monkeypatch, ROWS, "--device", "cpu", "--json", str(file))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["a", "PASS"],
        ["b", "SKIP"],
        ["c", "FAIL"],
    ]
    assert lines[1].endswith("≤ 1e-5") and lines[-1] == "1 PASS, 1 FAIL, 1 SKIP in 0 s on cpu"
    written = json.loads(file.read_text())
    assert written["device"] == "cpu" and written["counts"] == {"PASS": 1, "FAIL": 1, "SKIP": 1}
    assert written["rows"][2] == {**ROWS[2]._asdict()}


def test_without_a_failed_check_the_exit_code_is_0(monkeypatch):
    context = run(monkeypatch, ROWS[:2], "--device", "cpu")
    assert context.device == "cpu" and context.gpus == 0 and not context.folder.exists()


def test_a_gpu_that_paddle_cannot_use_is_an_error(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(InputError, match=r"^--device gpu: .*use --device cpu"):
        run(monkeypatch, ROWS)
    assert run(monkeypatch, ROWS[:2], "--device", "cpu").gpus == 0


def test_the_checks_have_different_names_and_those_of_a_cpu_need_no_gpu():
    for on_gpu in (False, True):
        names = [check.name for check in all_checks(on_gpu)]
        assert len(set(names)) == len(names)
    assert len(names) > 50
    runnable = [check for check in all_checks(False) if not check.gpus]
    assert len(runnable) > 15 and all(check.function for check in runnable)
    assert all(check.function for check in all_checks(True))
