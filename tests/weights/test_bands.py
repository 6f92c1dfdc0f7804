"""Weights for RGB images start models for any number of bands."""

import numpy as np
import paddle
import pytest
from checkpoint_fixtures import FORMATS
from reference import TINY, random_state
from small_models import SMALLEST, tiny_model

import paddleseg_segformer as ps
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.weights import adapt_bands

NAME = "patch_embed1.proj.weight"
KERNELS = np.random.default_rng(0).normal(size=[4, 3, 7, 7]).astype("float32")


def backbone(bands, rule="rgb", pretrained=None):
    options = {"pretrained_bands": rule, "pretrained": pretrained}
    return ps.MixVisionTransformer(in_channels=bands, **SMALLEST, **options)


def rgb_state():
    paddle.seed(1)
    return {name: tensor.numpy() for name, tensor in backbone(3).state_dict().items()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_kernels_of_each_rule(dtype):
    kernels = KERNELS.astype(dtype)
    red, green, blue = kernels.astype("float64").transpose(1, 0, 2, 3)
    total = red + green + blue
    expected = {
        ("rgb", 1): [total],
        ("rgb", 2): [total / 2, total / 2],
        ("rgb", 3): [red, green, blue],
        ("rgb", 5): [red, green, blue, total / 3, total / 3],
        ("mean", 1): [total],
        ("mean", 3): [total / 3] * 3,
        ("mean", 4): [total / 4] * 4,
    }
    for (rule, count), bands in expected.items():
        found = adapt_bands(kernels, count, rule)
        assert found.dtype == dtype and found.shape == (4, count, 7, 7)
        tolerance = 1e-2 if dtype == "float16" else 1e-6
        np.testing.assert_allclose(found, np.stack(bands, axis=1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rule, bands", [("rgb", 1), ("mean", 1), ("mean", 2), ("mean", 6)])
def test_equal_bands_give_what_a_gray_rgb_image_gave(rule, bands):
    state = rgb_state()
    rgb, other = backbone(3, pretrained=state), backbone(bands, rule, state)
    gray = paddle.randn([1, 1, 64, 64])
    with paddle.no_grad():
        rgb.eval(), other.eval()
        pairs = zip(other(gray.tile([1, bands, 1, 1])), rgb(gray.tile([1, 3, 1, 1])))
        for found, expected in pairs:
            np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_starts_a_model_of_four_bands(name, caplog):
    caplog.set_level("INFO", "paddleseg_segformer")
    write, projection = FORMATS[name]
    state, expected = random_state(projection), random_state(projection)
    kernels = expected[f"backbone.{NAME}"]
    mean = kernels.mean(axis=1, keepdims=True)
    expected[f"backbone.{NAME}"] = np.concatenate([kernels, mean], axis=1)
    width, source = state["linear_pred.weight"].shape[1], write(state, 5)
    encoder = ps.MixVisionTransformer(**{**TINY, "in_channels": 4})
    model = ps.SegFormer(5, encoder, width, projection, pretrained=source)
    for key, tensor in model.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), expected[key], rtol=0, atol=1e-6, err_msg=key)
    line = "the given arrays: adapted from 3 to 4 bands by pretrained_bands: rgb"
    assert caplog.messages.count(line) == 1


@pytest.mark.parametrize("model, source", [(3, 4), (3, 1), (5, 4)])
def test_going_back_is_an_error(model, source):
    state = rgb_state()
    state[NAME] = adapt_bands(state[NAME], source, "rgb")
    text = (
        f"the given arrays: is for {source}-band images, and the model for {model}-band ones; set "
        f"img_channels of the data sets and in_channels of the model to {source}, or use other "
        "weights."
    )
    with pytest.raises(InputError) as caught:
        backbone(model, pretrained=state)
    assert str(caught.value) == text


def test_only_the_start_of_training_adapts_weights():
    """Evaluation and prediction load with ``load_weights``."""
    state = random_state("linear")
    model = tiny_model(state)
    model.backbone.patch_embed1.proj = paddle.nn.Conv2D(4, TINY["embed_dims"][0], 7, 4, padding=3)
    before = model.state_dict()["linear_pred.weight"].numpy()
    for strict in (True, False):
        with pytest.raises(
            InputError, match="is for 3-band images, and the model for 4-band ones; set"
        ):
            ps.load_weights(model, random_state("linear", seed=1), strict)
    np.testing.assert_array_equal(model.state_dict()["linear_pred.weight"].numpy(), before)


def test_another_architecture_is_named_first():
    with pytest.raises(InputError, match="set the backbone to MixVisionTransformer_B0"):
        backbone(4, pretrained=ps.MixVisionTransformer_B0().state_dict())


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="pretrained_bands is 'copy'; it must be one of"):
        backbone(4, "copy")
