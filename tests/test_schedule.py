"""The learning rate schedule, and rate and decay of each parameter in optimizer steps."""

import numpy as np
import paddle
import pytest
from paddleseg.models import BiSeNetV2

from paddleseg_segformer import InputError
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.engine.optimizer import configure_parameters
from paddleseg_segformer.schedule import WarmupPolynomialDecay

CONFIG = "configs/segformer_mit-b0_512x512_160k_ade20k.yaml"


@pytest.fixture
def config(request):
    return load_config(request.config.rootpath / CONFIG, ["model.backbone.pretrained=null"])


def test_learning_rate_is_the_papers(config):
    """Through the optimizer, around each iteration at which the formula changes."""
    (optimizer,) = build(config, "optimizer")
    for t in (0, 1, 750, 1499, 1500, 80000, 159999):
        factor = 1 - (1 - t / 1500) * (1 - 1e-6) if t < 1500 else 1
        optimizer._learning_rate.step(t)
        assert optimizer.get_lr() == pytest.approx(6e-5 * (1 - t / 160000) * factor, rel=1e-12)


def test_other_base_rates_powers_and_end_rates(request):
    text = (
        "{type: WarmupPolynomialDecay, learning_rate: 0.2, power: 0.9, end_lr: 0.01, "
        "warmup_iters: 4, warmup_start_lr: 0.02}"
    )
    options = [f"lr_scheduler={text}", "iters=10"]
    (schedule,) = build(load_config(request.config.rootpath / CONFIG, options), "lr_scheduler")
    for t in range(10):
        warmup = 0.1 + 0.9 * t / 4 if t < 4 else 1
        assert schedule() == pytest.approx(warmup * (0.01 + 0.19 * (1 - t / 10) ** 0.9), rel=1e-12)
        schedule.step()


@pytest.mark.parametrize("start", [0, 4])
def test_the_default_is_linear_decay_to_0(start):
    schedule = WarmupPolynomialDecay(0.2, 10, last_epoch=start - 1)
    for t in range(start, 13):
        assert schedule() == pytest.approx(max(0.2 - 0.02 * t, 0), abs=1e-12)
        schedule.step()


def test_effective_rate_and_decay_of_every_parameter(config):
    """Adam's first step subtracts rate x sign of the gradient, and rate x decay x weight.

    From the same weights with gradients of both signs, half the difference of the results is the
    rate, and the decrease of their mean is rate x decay x weight.
    """
    ends = []
    for sign in (1.0, -1.0):
        model, optimizer = build(config, "model", "optimizer")
        optimizer._learning_rate.step(1500)
        base = optimizer.get_lr()
        parameters = {n: p for n, p in model.named_parameters() if not p.stop_gradient}
        for p in parameters.values():
            p.set_value(paddle.ones_like(p))
            p.grad = paddle.full(p.shape, sign)
        optimizer.step()
        ends.append({name: p.numpy().astype("float64") for name, p in parameters.items()})
    assert base == pytest.approx(6e-5 * (1 - 1500 / 160000), rel=1e-12)
    for name in parameters:
        head = not name.startswith("backbone.")
        norm = not head and "norm" in name
        rate = base * (10 if head else 1)
        np.testing.assert_allclose((ends[1][name] - ends[0][name]) / 2, rate, rtol=2e-3)
        lost = 1 - (ends[0][name] + ends[1][name]) / 2
        # float32 near 1 has a resolution of 6e-8, a tenth of the backbone's decay
        np.testing.assert_allclose(lost, 0 if norm else 0.01 * rate, atol=6e-8, err_msg=name)


def test_a_group_that_matches_nothing_is_an_error(config):
    (model,) = build(config, "model")
    config.dic["optimizer"]["custom_cfg"][0]["name"] = "hed"
    with pytest.raises(InputError, match="'hed' matches no parameter"):
        configure_parameters(config, model)


@pytest.mark.parametrize("pretrained", [None, "b0.pdparams"])
def test_freezing_random_weights_is_a_warning(pretrained, config, caplog):
    (model,) = build(config, "model")
    config.dic["model"]["pretrained"] = pretrained
    configure_parameters(config, model, freeze_backbone=True)
    assert ("random weights" in caplog.text) == (pretrained is None)


def test_a_model_without_a_backbone_cannot_freeze_it(config):
    model = BiSeNetV2(num_classes=2)
    config.dic["optimizer"].pop("custom_cfg")
    with pytest.raises(InputError, match="--freeze_backbone: BiSeNetV2 has no backbone"):
        configure_parameters(config, model, freeze_backbone=True)
