"""The checks of training runs fail with a defect in resuming."""

import paddle
import pytest
from training_runs import draw_scenes, overrides

from paddleseg_segformer.doctor import Context, runs
from paddleseg_segformer.engine import resume

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return draw_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def context(scenes, tmp_path_factory):
    """With the whole run, of four steps of a tiny model."""
    context = Context("cpu", 0, tmp_path_factory.mktemp("doctor"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "draw", lambda *_: scenes)
        patch.setattr(runs, "at", overrides)
        patch.setattr(runs, "iterations", lambda _: 4)
        runs.quickstart(context, "fp32")
        yield context


def check_resume(context, monkeypatch, name):
    """``check_resume``, whose second run is in a folder of this name."""
    quickstart = runs.quickstart
    monkeypatch.setattr(runs, "quickstart", lambda c, _, **options: quickstart(c, name, **options))
    return runs.check_resume(context)


def without(change):
    """``resume.restore`` that loses a part of the state."""
    restore = resume.restore

    def changed(folder, manifest, step, state, metadata):
        restore(folder, manifest, step, state, metadata)
        change(step, state)

    return changed


def forget_schedule(step, state):
    step.schedule.step(0)


def forget_position(step, state):
    state.samples = 0


def test_an_exact_resume_passes(context, monkeypatch):
    result = check_resume(context, monkeypatch, "resumed")
    assert result.passed and result.measured == "losses differ by 0.0e+00, weights equal"


@pytest.mark.parametrize("change", [forget_schedule, forget_position])
def test_a_resume_that_forgets_fails(change, context, monkeypatch):
    monkeypatch.setattr(resume, "restore", without(change))
    assert not check_resume(context, monkeypatch, change.__name__).passed


def test_a_resume_that_forgets_the_moments_fails(context, monkeypatch):
    def restore_schedule(self, state):
        self._learning_rate.set_state_dict(state["LR_Scheduler"])

    monkeypatch.setattr(paddle.optimizer.AdamW, "set_state_dict", restore_schedule)
    assert not check_resume(context, monkeypatch, "forget_moments").passed


def test_a_loss_that_does_not_fall_fails(context, monkeypatch):
    lines = [{"kind": "train", "loss": 2.0 - i / 100} for i in range(20)]
    monkeypatch.setattr(runs, "iterations", lambda _: 20)
    monkeypatch.setattr(runs, "quickstart", lambda *_: [*lines, {"kind": "eval", "miou": 0.5}])
    assert not runs.check_quickstart(context, "fp32").passed
    for line in lines[-2:]:
        line["loss"] = 0.5
    assert runs.check_quickstart(context, "fp32").passed
    lines[3] = {"kind": "skipped_step"}
    assert not runs.check_quickstart(context, "fp32").passed
