"""Checks in processes of their own: every outcome is a row, and the next check runs."""

import doctor_checks
import pytest

from paddleseg_segformer.doctor import FAIL, PASS, SKIP, Check, Context, run_checks, runner


def rows_of(folder, *checks, timeout=300):
    return list(run_checks(checks, Context("cpu", 0, folder), timeout))


@pytest.mark.integration
def test_exceptions_and_crashes_are_rows_and_stop_no_other_check(tmp_path):
    rows = rows_of(
        tmp_path,
        Check("override", doctor_checks.override, environment={"NVIDIA_TF32_OVERRIDE": "0"}),
        Check("bad", doctor_checks.bad, environment={"NVIDIA_TF32_OVERRIDE": "0"}),
        Check("crashes", doctor_checks.crashes, environment={"NVIDIA_TF32_OVERRIDE": "0"}),
        Check("override", doctor_checks.override),
        Check("unavailable", doctor_checks.unavailable),
        Check("raises", doctor_checks.raises),
    )
    names = ["override", "bad", "crashes", "override", "unavailable", "raises"]
    assert [row.name for row in rows] == names
    assert [row.status for row in rows] == [PASS, FAIL, FAIL, PASS, SKIP, FAIL]
    off, bad, crashed, on, unavailable, raised = rows
    assert unavailable.measured == "needs torch"
    assert off[2:5] == ("0", "any", {"value": "nan"}) and on.measured == "unset"
    assert bad[2:4] == ("2", "≤ 1") and not bad.log
    assert crashed.measured == "its process ended with SIGSEGV"
    assert "written by C++ code" in crashed.log
    assert raised.measured == "ValueError: no such kernel"
    assert "in raises" in raised.log


@pytest.mark.slow
def test_a_check_that_hangs_fails_and_is_ended(tmp_path):
    checks = [Check("hangs", doctor_checks.hangs), Check("exits", doctor_checks.exits)]
    rows = rows_of(tmp_path, *checks, timeout=20)
    assert [(row.status, row.measured) for row in rows] == [
        (FAIL, "no result after 20 s"),
        (FAIL, "its process ended with exit code 3"),
    ]


def test_checks_that_need_more_gpus_than_there_are_are_skipped(tmp_path):
    rows = rows_of(tmp_path, Check("one", None, gpus=1), Check("two", None, gpus=2))
    expected = [(SKIP, "needs a GPU"), (SKIP, "needs 2 GPUs")]
    assert [(row.status, row.measured) for row in rows] == expected


def test_checks_share_a_process_unless_environment_or_memory_differ(tmp_path):
    checks = [
        *(Check("off", None, environment={"A": "0"}) for _ in range(2)),
        *(Check("on", None) for _ in range(3)),
        Check("alone", None, alone=True),
        Check("alone", None, alone=True),
    ]
    counts, context = [], Context("cpu", 0, tmp_path)
    while checks:
        counts.append(len(runner._next_batch(checks, context)))
        checks = checks[counts[-1] :]
    assert counts == [2, 3, 1, 1]
    skipped = [Check("on", None), Check("gpu", None, gpus=1)]
    assert runner._next_batch(skipped, context) == skipped[:1]
