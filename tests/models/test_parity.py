"""SegFormer against PaddleSeg's, with the same state dict."""

import paddle
import pytest
from reference import paddleseg_segformer_model
from small_models import randomize

import paddleseg_segformer as ps
from paddleseg_segformer.models import VARIANTS


def pair(variant, classes=19):
    """Our model and PaddleSeg's, with the same random weights, biases and BatchNorm."""
    paddle.seed(0)
    theirs = paddleseg_segformer_model(variant, classes, VARIANTS[variant].decoder_width)
    randomize(theirs)
    ours = ps.SegFormer(classes, variant)
    names_and_shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert names_and_shapes[0] == names_and_shapes[1]
    ours.set_state_dict(theirs.state_dict())
    return ours, theirs


MARKS = {"B0": (), "B2": pytest.mark.integration}


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=MARKS.get(v, pytest.mark.slow)) for v in VARIANTS]
)
def test_logits(variant):
    ours, theirs = pair(variant)
    ours.eval(), theirs.eval()
    images = paddle.randn([1, 3, 96, 64] if variant in ("B3", "B4", "B5") else [2, 3, 128, 96])
    with paddle.no_grad():
        (expected,), (actual,) = theirs(images), ours(images)
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) < 1e-4


def without_randomness(model):
    for layer in model.sublayers(include_self=True):
        if type(layer).__name__ == "DropPath":
            layer.training = False
        elif isinstance(layer, (paddle.nn.Dropout, paddle.nn.Dropout2D)):
            layer.p = 0.0


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training):
    """In float64, within 1e-3.

    In training, the gradients of biases before BatchNorm are zero but for rounding; their errors
    are compared with the norm of the whole gradient.
    """
    ours, theirs = pair("B0")
    images, label = paddle.randn([2, 3, 96, 128]), paddle.randint(0, 19, [2, 96, 128])
    for model in (ours, theirs):
        model.to(dtype="float64")
        model.train() if training else model.eval()
        without_randomness(model)
        logits = model(images.astype("float64"))[0].transpose([0, 2, 3, 1])
        paddle.nn.functional.cross_entropy(logits, label).backward()
    expected = {n: p.grad for n, p in theirs.named_parameters() if not p.stop_gradient}
    whole = sum(float(gradient.norm()) for gradient in expected.values())
    gradients = {n: p.grad for n, p in ours.named_parameters() if not p.stop_gradient}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        norm = float(expected[name].norm())
        error = float((gradient - expected[name]).norm())
        assert error < 1e-3 * max(norm, 1e-10 * whole), name
