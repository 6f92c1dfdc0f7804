"""SegFormer and its decode head against the paper's equations, and SegFormer's arguments."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from reference import assert_close, bilinear, random_state, segformer, upsample
from small_models import randomize, smallest_model, tiny_model, without_initialization

import paddleseg_segformer as ps

SIZES = [[(16, 16), (8, 8), (4, 4), (2, 2)], [(9, 7), (5, 4), (3, 2), (2, 1)]]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
@pytest.mark.parametrize("size", [(32, 64), (50, 71)])
def test_logits_are_the_papers(size, projection, align_corners):
    state = random_state(projection)
    model = tiny_model(state, align_corners=align_corners)
    images = np.random.default_rng(1).normal(size=[2, 3, *size])
    with paddle.no_grad():
        (logits,) = model(paddle.to_tensor(images, "float32"))
    expected = segformer(state, images, align_corners=align_corners)
    assert_close(logits.numpy(), bilinear(expected, size, align_corners))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
def test_dropout_and_stochastic_depth(projection, training, monkeypatch):
    """What drops values multiplies them by a function of its rate here: the logits show each."""
    drop = lambda x, p, training=True, **options: x * (1 + p) if training else x  # noqa: E731
    monkeypatch.setattr(F, "dropout", drop)
    monkeypatch.setattr(F, "dropout2d", drop)
    monkeypatch.setattr(paddle, "bernoulli", lambda keep: keep**2)  # then divided by keep
    state, images = random_state(projection), np.random.default_rng(1).normal(size=[2, 3, 50, 71])
    rates = {"drop_rate": 0.2, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}
    model = tiny_model(state, dropout=0.4, **rates)
    model.train() if training else model.eval()
    paths = 1 - 0.5 * np.arange(5) / 4
    factors = {"linear": 1.2, "attention": 1.3, "path": paths, "head": 1.4} if training else None
    expected = segformer(state, images, factors=factors)
    (logits,) = model(paddle.to_tensor(images, "float32"), resize_logits=False)
    assert_close(logits.numpy(), expected)


def test_default_rates():
    """Those of the paper: 0.1 in the head and, at the last block, for stochastic depth."""
    model = ps.SegFormer(5, "B0")
    dropouts = [layer for layer in model.backbone.sublayers() if "Dropout" in type(layer).__name__]
    assert len(dropouts) == 16 and {layer.p for layer in dropouts} == {0}
    assert model.linear_pred.dropout.p == model.backbone.block4[1].drop_path.rate == 0.1
    for i in range(1, 5):
        for block in getattr(model.backbone, f"block{i}"):
            assert block.attn.attn_drop_rate == block.mlp.fc2.drop_rate == 0


@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
def test_batch_norm_statistics_move_by_a_tenth(projection):
    """In training, towards those of the batch, of all of the head's norms."""
    model = tiny_model(random_state(projection))
    norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    assert len(norms) == (1 if projection == "linear" else 5)
    x = np.random.default_rng(0).normal(3, 2, [4, 6, 20, 20])
    for norm in norms:
        before = [norm._mean.numpy(), norm._variance.numpy()]
        norm.train()
        norm(paddle.to_tensor(x, "float32"))
        for tensor, old, new in zip(
            (norm._mean, norm._variance), before, (x.mean((0, 2, 3)), x.var((0, 2, 3)))
        ):
            np.testing.assert_allclose(tensor.numpy(), 0.9 * old + 0.1 * new, rtol=1e-3)


class Features(paddle.nn.Layer):
    """A backbone whose four feature maps are parameters, to have gradients."""

    feat_channels = (5, 6, 7, 8)

    def __init__(self, sizes):
        super().__init__()
        shapes = [[2, c, *size] for c, size in zip(self.feat_channels, sizes)]
        normal = paddle.nn.initializer.Normal()
        maps = [self.create_parameter(s, default_initializer=normal) for s in shapes]
        self.maps = paddle.nn.ParameterList(maps)

    def forward(self, x):
        return list(self.maps)


def plain_model(model, images):
    """Project, upsample, concatenate, fuse, classify (equation 4), and upsample."""
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
def test_decode_is_equation_4(projection, sizes, align_corners, training):
    """Logits and the gradients of all parameters and features, in float64.

    Only in evaluation do the biases matter: in training BatchNorm subtracts them.
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


def test_order_of_the_stages_in_the_fuse_convolution():
    """Its first E input channels belong to stage 4, or to stage 1 with conv_bn_relu."""
    for projection, stage in (("linear", 4), ("conv_bn_relu", 1)):
        features = Features([(8, 8), (4, 4), (2, 2), (1, 1)])
        model = ps.SegFormer(2, features, 4, stage_projection=projection)
        model.eval()
        weight = np.zeros([4, 16, 1, 1], dtype="float32")
        weight[:, :4] = 1
        model.linear_fuse._conv.weight.set_value(weight)
        norm = model.linear_fuse._batch_norm
        norm.bias.set_value(paddle.full_like(norm.bias, 9))  # ReLU passes all gradients
        model.linear_pred.weight.set_value(paddle.ones_like(model.linear_pred.weight))
        model.decode(features(None)).sum().backward()
        touched = [bool(m.grad is not None and m.grad.abs().sum() > 0) for m in features.maps]
        assert touched == [i == stage for i in range(1, 5)]


@pytest.mark.parametrize("projection", ["linear", "conv_bn_relu"])
def test_initial_weights_of_the_head(projection):
    """Linear layers 0.02, convolutions sqrt(2 / fan_out), biases 0, BatchNorm an identity."""
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("resize_logits, size", [(True, [50, 83]), (False, [13, 21])])
def test_size_of_the_logits(resize_logits, size, training):
    model = ps.SegFormer(7, ps.MixVisionTransformer_B0(), 32)
    model.train() if training else model.eval()
    with paddle.no_grad():
        (logits,) = model(paddle.randn([2, 3, 50, 83]), resize_logits=resize_logits)
    assert logits.shape == [2, 7, *size]


def test_static_graph_of_the_whole_model():
    """PaddleSeg's to_static_training and export give only the shape of the images."""
    model = tiny_model(random_state())
    images = paddle.randn([1, 3, 64, 96])
    with paddle.no_grad():
        (expected,) = model(images)
        specs = [paddle.static.InputSpec([1, 3, 64, 96], "float32")]
        (actual,) = paddle.jit.to_static(model, specs, full_graph=True)(images)
    assert_close(actual.numpy(), expected.numpy())


@pytest.mark.parametrize(
    "projection, name, width",
    [("linear", "B1", 256), ("linear", "B2", 768), ("conv_bn_relu", "B2", 256)],
)
@without_initialization()
def test_default_decoder_width(projection, name, width):
    backbone = getattr(ps, f"MixVisionTransformer_{name}")(norm_epsilon=1e-5)
    for named in (name, backbone):
        model = ps.SegFormer(2, named, stage_projection=projection)
        assert model.linear_pred.weight.shape == [2, width, 1, 1]


def test_backbones_that_are_not_variants_need_a_decoder_width():
    for backbone in (Features(SIZES[0]), ps.MixVisionTransformer_B0(depths=[1, 1, 1, 1])):
        with pytest.raises(ValueError, match=r"embedding_dim is missing.*B0, .*give the decoder"):
            ps.SegFormer(2, backbone)


def test_unknown_backbones_and_projections_raise():
    with pytest.raises(ValueError, match=r"'B6'; it must be a layer, or one of B0, B1, "):
        ps.SegFormer(2, "B6")
    with pytest.raises(ValueError, match="'conv'"):
        ps.SegFormer(2, Features([(4, 4)] * 4), 4, stage_projection="conv")


@pytest.mark.cpu_branch("a GPU uses no threads")
@pytest.mark.parametrize("threads, strips", [(1, 1), (2, 2), (4, 3)])
def test_an_image_on_several_threads(threads, strips, use_threads):
    """Computed by strips of rows, it has the logits that it has on one thread."""
    model, image, calls = smallest_model(), paddle.randn([1, 3, 403, 61]), []
    with paddle.no_grad():
        (expected,) = model(image)
        use_threads(threads)
        model.backbone.block1[0].mlp.register_forward_post_hook(lambda *_: calls.append(1))
        (actual,) = model(image)
    assert len(calls) == strips
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(actual.argmax(1).numpy(), expected.argmax(1).numpy())
