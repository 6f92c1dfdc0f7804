"""The learning rate schedule, and rate and decay of each parameter in optimizer steps."""

import numpy as np
import paddle
import pytest

from paddleseg_segformer.config import build, load_config
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


def test_the_power_must_not_be_negative():
    constant = WarmupPolynomialDecay(0.2, 10, power=0)
    for _ in range(10):
        assert constant() == 0.2
        constant.step()
    with pytest.raises(ValueError, match=r"power must be at least 0, not -0\.5"):
        WarmupPolynomialDecay(0.2, 10, power=-0.5)


@pytest.mark.parametrize("start", [0, 4])
def test_the_default_is_linear_decay_to_0(start):
    schedule = WarmupPolynomialDecay(0.2, 10, last_epoch=start - 1)
    for t in range(start, 13):
        assert schedule() == pytest.approx(max(0.2 - 0.02 * t, 0), abs=1e-12)
        schedule.step()


# By config: how many times the base rate the head has, and the weight decay of the backbone's
# LayerNorms.
GROUPS = {
    CONFIG: (10, 0),
    "configs/segformer_mmseg-head_mit-b0_512x512_160k_ade20k.yaml": (10, 0),
    "configs/quickstart.yaml": (1, 0),
    "configs/paddleseg/segformer_mit-b0.yaml": (10, 0.01),
}


@pytest.mark.parametrize("file", GROUPS)
def test_effective_rate_and_decay_of_every_parameter(file, request):
    """Adam's first step subtracts rate x sign of the gradient, and rate x decay x weight.

    From the same weights with gradients of both signs, half the difference of the results is the
    rate, and the decrease of their mean is rate x decay x weight.
    """
    multiplier, norm_decay = GROUPS[file]
    options = ["model.backbone.pretrained=null", "model.backbone.depths=[1, 1, 1, 1]"]
    options += ["optimizer.grad_clip_cfg=null", "lr_scheduler.learning_rate=6e-5"]
    if "paddleseg/" in file:  # whose base rate is the head's
        options[-1] = "lr_scheduler.learning_rate=6e-4"
    ends = []
    for sign in (1.0, -1.0):
        config = load_config(request.config.rootpath / file, [*options, "iters=160000"])
        model, optimizer = build(config, "model", "optimizer")
        optimizer._learning_rate.step(1500)
        parameters = {n: p for n, p in model.named_parameters() if not p.stop_gradient}
        for p in parameters.values():
            p.set_value(paddle.ones_like(p))
            p.grad = paddle.full(p.shape, sign)
        optimizer.step()
        ends.append({name: p.numpy().astype("float64") for name, p in parameters.items()})
    layers = model.backbone.named_sublayers(prefix="backbone")
    norms = {f"{name}.weight" for name, layer in layers if isinstance(layer, paddle.nn.LayerNorm)}
    norms |= {name.replace(".weight", ".bias") for name in norms}
    assert len(norms) == 2 * (4 + 8 + 3 + 4)  # of embedding, blocks, reduction and stages
    base = 6e-5 * (1 - 1500 / 160000)
    for name in parameters:
        rate = base if name.startswith("backbone.") else base * multiplier
        decay = norm_decay if name in norms else 0.01
        np.testing.assert_allclose((ends[1][name] - ends[0][name]) / 2, rate, rtol=2e-3)
        lost = 1 - (ends[0][name] + ends[1][name]) / 2
        # float32 near 1 has a resolution of 6e-8, a tenth of the backbone's decay
        np.testing.assert_allclose(lost, decay * rate, atol=6e-8, err_msg=name)
