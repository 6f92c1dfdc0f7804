"""The checks of training steps pass, and fail with a defect in the step."""

import paddle
import pytest

from paddleseg_segformer.doctor import Context, steps
from paddleseg_segformer.engine.train_step import TrainStep
from paddleseg_segformer.models import CrossEntropyLoss

pytestmark = pytest.mark.integration
CONTEXT = Context("cpu", 0, None)


def check_step():
    return steps.check_step(CONTEXT, "B0", "float32", 32)


def test_the_step_passes():
    result = check_step()
    assert result.passed and result.details["update"] < 3e-4, result
    assert paddle.get_default_dtype() == "float32"  # float64 was for the reference alone


def test_a_wrong_divisor_of_the_loss_fails(monkeypatch):
    weights = CrossEntropyLoss._pixel_weights

    def of_valid_pixels(self, *arguments):
        valid, _ = weights(self, *arguments)
        return valid, valid

    monkeypatch.setattr(CrossEntropyLoss, "_pixel_weights", of_valid_pixels)
    result = check_step()
    assert not result.passed and result.details["loss"] > 0.05


@pytest.mark.parametrize(
    "groups",
    [
        "[{name: linear_, lr_mult: 10.0}]",  # norms with weight decay
        "[{name: linear_, lr_mult: 9.9}, {name: norm, weight_decay_mult: 0.0}]",
    ],
)
def test_wrong_parameter_groups_fail(groups, monkeypatch):
    recipe = steps.recipe
    changed = f"optimizer.custom_cfg={groups}"
    monkeypatch.setattr(steps, "recipe", lambda *arguments: recipe(*arguments, changed))
    result = check_step()
    assert not result.passed and result.details["update"] > 5e-3


def test_a_skipped_step_passes():
    assert steps.check_skipped_step(CONTEXT).passed


def test_a_skipped_step_that_changes_statistics_fails(monkeypatch):
    monkeypatch.setattr(TrainStep, "_restore", lambda *_: None)
    result = steps.check_skipped_step(CONTEXT)
    assert not result.passed
    assert all("batch_norm" in name for name in result.details["changed"])


def test_a_step_that_is_not_skipped_fails(monkeypatch):
    call = TrainStep.__call__

    def ignore(self, *arguments):
        result = call(self, *arguments)
        return result._replace(skipped=None)

    monkeypatch.setattr(TrainStep, "__call__", ignore)
    assert not steps.check_skipped_step(CONTEXT).passed
