"""Parameter groups as they are logged, freezing, and the gradient norm."""

import logging
import math

import numpy as np
import paddle
import pytest
from paddleseg.models import BiSeNetV2

from paddleseg_segformer import InputError
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.engine.optimizer import (
    configure_parameters,
    gradient_norm,
    group_learning_rates,
)

CONFIG = "configs/segformer_mit-b0_512x512_160k_ade20k.yaml"
WITHOUT_WEIGHTS = ["model.backbone.pretrained=null"]
# B0, counted by hand: number of tensors and of values.
# Head: four projections, the fuse convolution with BatchNorm, and the classifier.
HEAD = (13, 512 * 256 + 4 * 256 + 1024 * 256 + 2 * 256 + 150 * 257)
# LayerNorms: of the embedding, four of the blocks, two of sequence reductions in three stages, and
# one at the end of a stage.
NORMS = (60, 2 * (8 * (32 + 64 + 160) + 6 * 256))
# Four embeddings; q, kv, proj, fc1, dwconv and fc2 of eight blocks; six sequence reductions.
OTHERS = 2 * (4 + 8 * 6 + 6)
BACKBONE = 3_319_392  # as Hugging Face's


@pytest.fixture(scope="module")
def model(request):
    return build(load_config(request.config.rootpath / CONFIG, WITHOUT_WEIGHTS), "model")[0]


@pytest.fixture
def config(request, model):
    for parameter in model.backbone.parameters():
        parameter.stop_gradient = False  # thaw it
    return load_config(request.config.rootpath / CONFIG, WITHOUT_WEIGHTS)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_log_has_size_rate_and_decay_of_each_group(frozen, config, model, caplog):
    caplog.set_level(logging.INFO)
    configure_parameters(config, model, freeze_backbone=frozen)
    lines = [line.split() for line in caplog.messages if line.startswith("Parameters")]
    norms, others = ((0, 0), (0, 0)) if frozen else (NORMS, (OTHERS, BACKBONE - NORMS[1]))
    expected = [
        ("linear_", HEAD, "10", "0.01"),
        ("norm", norms, "1", "0"),
        ("all others", others, "1", "0.01"),
    ]
    assert [" ".join(line) for line in lines] == [
        f"Parameters {name} {tensors} tensors, {size / 1e6:.2f} M, lr x {rate}, decay {decay}"
        for name, (tensors, size), rate, decay in expected
    ]
    assert (f"Frozen: the backbone, {BACKBONE / 1e6:.2f} M parameters" in caplog.text) == frozen
    names = {n for n, p in model.named_parameters() if not p.stop_gradient}
    assert any(name.startswith("backbone.") for name in names) != frozen
    assert "linear_pred.weight" in names


@pytest.mark.parametrize("pretrained", [None, "b0.pdparams"])
def test_freezing_random_weights_is_a_warning(pretrained, config, model, caplog):
    config.dic["model"]["pretrained"] = pretrained
    configure_parameters(config, model, freeze_backbone=True)
    assert ("random weights" in caplog.text) == (pretrained is None)


def test_freezing_a_pretrained_backbone_is_no_warning(config, model, caplog):
    config.dic["model"]["backbone"]["pretrained"] = "mit_b0.pdparams"
    configure_parameters(config, model, freeze_backbone=True)
    assert "random weights" not in caplog.text


def test_a_model_without_a_backbone_cannot_freeze_it(config):
    config.dic["optimizer"].pop("custom_cfg")
    with pytest.raises(InputError, match="--freeze_backbone: BiSeNetV2 has no backbone"):
        configure_parameters(config, BiSeNetV2(num_classes=2), freeze_backbone=True)


@pytest.mark.parametrize(
    "group, message",
    [
        ({"name": "hed", "lr_mult": 10.0}, "the group 'hed' matches no parameter"),
        ({"name": "linear_", "lr_mul": 10.0}, "lr_mul is no key of a group; use name, lr_mult, "),
        # the groups before it have all the parameters
        ({"name": "linear_pred", "lr_mult": 2.0}, "the group 'linear_pred' matches no parameter"),
    ],
)
def test_invalid_groups(group, message, config, model):
    config.dic["optimizer"]["custom_cfg"].append(group)
    with pytest.raises(InputError, match=message):
        configure_parameters(config, model)


def test_rates_of_the_groups(config):
    assert group_learning_rates(config, 0.5) == {"base": 0.5, "linear_": 5, "norm": 0.5}
    del config.dic["optimizer"]["custom_cfg"]
    assert group_learning_rates(config, 0.5) == {"base": 0.5}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_gradient_norm_is_global(on_cpu, monkeypatch):
    monkeypatch.setattr(paddle.base.core.Place, "is_cpu_place", lambda place: on_cpu)
    layers = paddle.nn.Sequential(paddle.nn.Linear(3, 4), paddle.nn.Linear(4, 5))
    assert gradient_norm(layers.parameters()) == 0
    random, squares = np.random.default_rng(0), 0.0
    for parameter in layers.parameters()[1:]:  # the first one has no gradient
        values = random.normal(size=parameter.shape).astype("float32")
        parameter.grad = paddle.to_tensor(values)
        squares += float((values.astype("float64") ** 2).sum())
    np.testing.assert_allclose(gradient_norm(layers.parameters()), math.sqrt(squares), rtol=1e-6)
    parameter.grad[0] = float("inf")
    assert gradient_norm(layers.parameters()) == math.inf
