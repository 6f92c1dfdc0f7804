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
    """-log softmax of the true class, and 0 where the label is ignored."""
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
    divisor = weights.sum() if avg_non_ignore else LABELS.size
    actual = loss_of(weight=CLASS_WEIGHTS, avg_non_ignore=avg_non_ignore)
    assert actual == pytest.approx((losses * weights).sum() / divisor, rel=1e-5)


@pytest.mark.parametrize("share, count", [(0.25, 15), (1e-4, 1)])
def test_hardest_pixels(share, count):
    """At least one."""
    losses, _ = pixel_losses(labels=LABELS % 4)
    hardest = np.sort(losses.ravel())[::-1][:count]
    actual = loss_of(labels=LABELS % 4, top_k_percent_pixels=share)
    assert actual == pytest.approx(hardest.mean(), rel=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_weights_of_pixels(share):
    """They weigh the losses, not the divisor, and say which are the hardest."""
    losses, valid = pixel_losses()
    pixel_weights = rng.random(LABELS.shape).astype("float32")
    inputs = map(paddle.to_tensor, (LOGITS, LABELS, pixel_weights))
    actual = float(CrossEntropyLoss(top_k_percent_pixels=share)(*inputs))
    order = np.argsort(-(losses * pixel_weights).ravel())[: int(share * losses.size)]
    expected = (losses * pixel_weights).ravel()[order].sum() / valid.ravel()[order].sum()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_channels_last():
    actual = loss_of(logits=np.moveaxis(LOGITS, 1, -1).copy(), data_format="NHWC")
    assert actual == pytest.approx(loss_of(), rel=1e-6)


def test_channels_first_in_the_others_place_are_refused():
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


def test_all_ignored_is_zero_with_zero_gradient():
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
    """A model that leaves its logits at stride 4 for the loss to resize trains the same."""
    paddle.seed(0)
    model = ps.SegFormer(4, ps.MixVisionTransformer_B0(drop_path_rate=0.0), 16, dropout=0.0)
    model.train()
    images, labels = paddle.randn([2, 3, 66, 90]), paddle.randint(0, 4, [2, 66, 90])
    results = []
    for model.resizes_logits_in_training in (True, False):
        logits = model(images)[0]
        loss = CrossEntropyLoss()(logits, labels)
        loss.backward()
        results.append((float(loss), model.linear_pred.weight.grad.numpy()))
        model.clear_gradients()
    assert logits.shape == [2, 4, 17, 23]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)
    model.eval()
    assert model(images)[0].shape == [2, 4, 66, 90]


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_points_and_a_share_that_means_all(share):
    losses, valid = pixel_losses()
    shapes = {"logits": LOGITS.reshape([2, 4, 30]), "labels": LABELS.reshape([2, 30])}
    for inputs in (shapes, {}):
        actual = loss_of(**inputs, top_k_percent_pixels=share)
        assert actual == pytest.approx(losses.sum() / valid.sum(), rel=1e-5)
