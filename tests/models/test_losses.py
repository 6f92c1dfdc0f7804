"""CrossEntropyLoss against its definition in NumPy."""

import numpy as np
import paddle
import pytest

import paddleseg_segformer as ps
from paddleseg_segformer import CrossEntropyLoss

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=[2, 4, 5, 6]).astype("float32")
LABELS = rng.integers(0, 4, [2, 5, 6])
LABELS[0, :2] = 255
CLASS_WEIGHTS = [0.5, 1.0, 2.0, 4.0]


def pixel_losses(logits=LOGITS, labels=LABELS):
    """-log softmax of the true class, 0 where ignored; and which pixels are valid."""
    logits = np.moveaxis(logits.astype("float64"), 1, -1)
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = labels != 255
    picked = np.take_along_axis(log_softmax, np.where(valid, labels, 0)[..., None], -1)[..., 0]
    return np.where(valid, -picked, 0), valid


def loss_of(logits=LOGITS, labels=LABELS, **options):
    return float(CrossEntropyLoss(**options)(paddle.to_tensor(logits), paddle.to_tensor(labels)))


def test_mean_over_valid_pixels():
    losses, valid = pixel_losses()
    assert loss_of() == pytest.approx(losses.sum() / valid.sum(), rel=1e-5)


def test_mean_over_all_pixels():
    losses, _ = pixel_losses()
    assert loss_of(avg_non_ignore=False) == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("avg_non_ignore", [True, False])
def test_class_weights(avg_non_ignore):
    losses, valid = pixel_losses()
    weights = np.array(CLASS_WEIGHTS)[np.where(valid, LABELS, 0)] * valid
    normalizer = weights.sum() if avg_non_ignore else LABELS.size
    actual = loss_of(weight=CLASS_WEIGHTS, avg_non_ignore=avg_non_ignore)
    assert actual == pytest.approx((losses * weights).sum() / normalizer, rel=1e-5)
    loss = CrossEntropyLoss(weight=CLASS_WEIGHTS, avg_non_ignore=avg_non_ignore)
    assert float(loss.normalizer(paddle.to_tensor(LABELS))) == pytest.approx(normalizer)


@pytest.mark.parametrize("fraction, count", [(0.25, 15), (1e-4, 1)])
def test_hardest_pixels(fraction, count):
    losses, _ = pixel_losses(labels=LABELS % 4)
    hardest = np.sort(losses.ravel())[::-1][:count]
    actual = loss_of(labels=LABELS % 4, top_k_percent_pixels=fraction)
    assert actual == pytest.approx(hardest.mean(), rel=1e-5)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_semantic_weights(fraction):
    """They weight the losses, before the hardest are selected, but not the normalizer."""
    losses, valid = pixel_losses()
    pixel_weights = rng.random(LABELS.shape).astype("float32")
    inputs = map(paddle.to_tensor, (LOGITS, LABELS, pixel_weights))
    actual = float(CrossEntropyLoss(top_k_percent_pixels=fraction)(*inputs))
    order = np.argsort(-(losses * pixel_weights).ravel())[: int(fraction * losses.size)]
    expected = (losses * pixel_weights).ravel()[order].sum() / valid.ravel()[order].sum()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_channels_last():
    actual = loss_of(logits=np.moveaxis(LOGITS, 1, -1).copy(), data_format="NHWC")
    assert actual == pytest.approx(loss_of(), rel=1e-6)


def test_nchw_logits_for_nhwc_raise():
    with pytest.raises(ValueError, match=r"NHWC logits.*\[2, 4, 5, 6\].*\[2, 5, 6\]"):
        loss_of(data_format="NHWC")


@pytest.mark.parametrize(
    "option, value",
    [("data_format", "NCWH"), ("data_format", None)]
    + [("top_k_percent_pixels", value) for value in (0, -0.1, float("nan"))],
)
def test_wrong_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value!r}; it must be"):
        CrossEntropyLoss(**{option: value})


def test_all_ignored_gives_zero_loss_and_gradient():
    logits = paddle.to_tensor(LOGITS, stop_gradient=False)
    loss = CrossEntropyLoss()(logits, paddle.full([2, 5, 6], 255, "int64"))
    loss.backward()
    assert float(loss) == 0 and not logits.grad.numpy().any()


def test_uint8_labels():
    assert loss_of(labels=LABELS.astype("uint8")) == pytest.approx(loss_of(), rel=1e-6)


def test_wrong_number_of_class_weights():
    with pytest.raises(ValueError, match="3 class weights for 4 classes"):
        loss_of(weight=[1, 1, 1])


def test_logits_of_any_size_are_resized_to_the_label():
    """Training is the same whether the model or the loss resizes the logits."""
    paddle.seed(0)
    model = ps.SegFormer(4, ps.MixVisionTransformer_B0(drop_path_rate=0.0), 16, dropout=0.0)
    model.train()
    images, labels = paddle.randn([2, 3, 66, 90]), paddle.randint(0, 4, [2, 66, 90])
    results = []
    for resize_logits in (True, False):
        logits = model(images, resize_logits=resize_logits)[0]
        loss = CrossEntropyLoss()(logits, labels)
        loss.backward()
        results.append((float(loss), model.linear_pred.weight.grad.numpy()))
        model.clear_gradients()
    assert logits.shape == [2, 4, 17, 23]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_scale():
    logits = paddle.to_tensor(LOGITS, stop_gradient=False)
    loss = CrossEntropyLoss()(logits, paddle.to_tensor(LABELS), scale=0.25)
    assert float(loss) == pytest.approx(loss_of() / 4, rel=1e-6)


@pytest.mark.parametrize("fraction", [1.0, 2.0])
def test_points_and_fractions_of_all_pixels(fraction):
    losses, valid = pixel_losses()
    shapes = {"logits": LOGITS.reshape([2, 4, 30]), "labels": LABELS.reshape([2, 30])}
    for inputs in (shapes, {}):
        actual = loss_of(**inputs, top_k_percent_pixels=fraction)
        assert actual == pytest.approx(losses.sum() / valid.sum(), rel=1e-5)
