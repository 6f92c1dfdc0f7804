"""The folded decode head against the paper's plain formula."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from reference import bilinear
from small_models import randomize

import paddleseg_segformer as ps

SIZES = [[(16, 16), (8, 8), (4, 4), (2, 2)], [(9, 7), (5, 4), (3, 2), (2, 1)]]


class Features(paddle.nn.Layer):
    """Stands in for an encoder: its four feature maps are parameters, to have gradients."""

    feat_channels = (5, 6, 7, 8)

    def __init__(self, sizes):
        super().__init__()
        shapes = [[2, c, *size] for c, size in zip(self.feat_channels, sizes)]
        normal = paddle.nn.initializer.Normal()
        maps = [self.create_parameter(s, default_initializer=normal) for s in shapes]
        self.maps = paddle.nn.ParameterList(maps)

    def forward(self, x):
        return list(self.maps)


def upsample(x, size, align_corners):
    """The oracle's resize as one matrix, so that it has a gradient."""
    n, c, h, w = x.shape
    matrix = bilinear(np.eye(h * w).reshape([1, h * w, h, w]), size, align_corners)
    matrix = paddle.to_tensor(matrix.reshape([h * w, -1]))
    return paddle.matmul(x.flatten(2), matrix).reshape([n, c, *size])


def plain_model(model, images):
    """Section 3.2 as it is written: project, upsample, concatenate, fuse, classify, upsample."""
    features, upsampled = model.backbone(images), []
    for i in model.fuse_order:
        x, layer = features[i - 1], getattr(model, f"linear_c{i}")
        if model.stage_projection == "linear":
            x = layer.proj(x.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])
        else:
            x = F.relu(layer._batch_norm(layer._conv(x)))
        upsampled.append(upsample(x, features[0].shape[2:], model.align_corners))
    fuse = model.linear_fuse
    fused = F.relu(fuse._batch_norm(fuse._conv(paddle.concat(upsampled, axis=1))))
    return upsample(model.linear_pred(fused), images.shape[2:], model.align_corners)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
@pytest.mark.parametrize("sizes", SIZES)
def test_fold_is_the_plain_formula(projection, sizes, align_corners, training):
    """Logits and the gradient of every parameter and feature, in float64.

    In training BatchNorm takes off what the projections' biases add; in evaluation it stays.
    """
    paddle.seed(1)
    options = {"stage_projection": projection, "align_corners": align_corners, "dropout": 0.0}
    model = ps.SegFormer(3, Features(sizes), 12, **options)
    randomize(model)
    model.train() if training else model.eval()
    model.to(dtype="float64")
    images = paddle.zeros([2, 3, 20, 25])
    weights = paddle.randn([2, 3, 20, 25], dtype="float64")
    results = []
    for whole in (plain_model, lambda model, images: model(images)[0]):
        model.clear_gradients()
        logits = whole(model, images)
        (logits * weights).sum().backward()
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if not p.stop_gradient}
        results.append((logits.numpy(), gradients))
    (expected, expected_gradients), (actual, gradients) = results
    np.testing.assert_allclose(actual, expected, atol=1e-10)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected_gradients[name], atol=1e-9, err_msg=name)


def test_fuse_order_of_the_variants():
    """The first of the fuse convolution's four parts belongs to stage 4, or to stage 1."""
    for projection, stage in (("linear", 4), ("conv_bn_relu", 1)):
        features = Features([(8, 8), (4, 4), (2, 2), (1, 1)])
        model = ps.SegFormer(2, features, 4, stage_projection=projection)
        model.eval()
        weight = np.zeros([4, 16, 1, 1], dtype="float32")
        weight[:, :4] = 1
        model.linear_fuse._conv.weight.set_value(weight)
        norm = model.linear_fuse._batch_norm
        norm.bias.set_value(paddle.full_like(norm.bias, 9))  # no ReLU stops a gradient
        model.linear_pred.weight.set_value(paddle.ones_like(model.linear_pred.weight))
        model.decode(features(None)).sum().backward()
        touched = [bool(m.grad is not None and m.grad.abs().sum() > 0) for m in features.maps]
        assert touched == [i == stage for i in range(1, 5)]


def test_dropout_takes_whole_channels_in_training_alone():
    """With ones for all of the classifier's weights, the logits are the sum of what is kept."""
    paddle.seed(0)
    model = ps.SegFormer(2, Features(SIZES[0]), 64, dropout=0.25)
    model.linear_pred.weight.set_value(paddle.ones_like(model.linear_pred.weight))
    model.linear_pred.bias.set_value(paddle.to_tensor([0.0, 1.0]))
    maps = paddle.ones([50, 64, 2, 3])
    model.train()
    sums = model._classify(maps).numpy()
    assert (sums[:, :1] == sums[:, :1, :1, :1]).all()  # a channel is kept or dropped as a whole
    np.testing.assert_allclose(sums[:, 1], sums[:, 0] + 1, rtol=1e-6)
    kept = sums[:, 0, 0, 0] * 0.75
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    assert len(np.unique(kept.round())) > 5 and kept.mean() == pytest.approx(48, abs=1.5)
    model.eval()
    np.testing.assert_array_equal(model._classify(maps).numpy()[:, 0], 64)


@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
def test_initial_weights_of_the_head(projection):
    """Linear 0.02, convolutions sqrt(2 / fan_out), biases 0, BatchNorm an identity."""
    paddle.seed(0)
    model = ps.SegFormer(150, Features(SIZES[0]), 256, stage_projection=projection)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if "_batch_norm" in name or name.endswith("bias"):
            expected = {"weight": 1, "bias": 0, "_mean": 0, "_variance": 1}[name.split(".")[-1]]
            assert (array == expected).all(), name
        elif not name.startswith("backbone"):
            std = 0.02 if ".proj." in name else math.sqrt(2 / tensor.shape[0])
            assert array.std() == pytest.approx(std, rel=0.05), name
            assert array.mean() == pytest.approx(0, abs=0.1 * std), name


def test_logits_have_the_images_size():
    model = ps.SegFormer(7, ps.MixVisionTransformer_B0(), 32)
    model.eval()
    with paddle.no_grad():
        (logits,) = model(paddle.randn([2, 3, 50, 83]))
    assert logits.shape == [2, 7, 50, 83]


def test_unknown_projection_is_named():
    with pytest.raises(ValueError, match="'conv'"):
        ps.SegFormer(2, Features([(4, 4)] * 4), 4, stage_projection="conv")
