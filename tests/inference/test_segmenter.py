"""How images are looked at, against definitions worked out by hand and PaddleSeg's own code."""

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddleseg.transforms import Compose, LimitLong, Normalize, Padding, Resize

import paddleseg_segformer as ps
from paddleseg_segformer.data.transforms import at_scale
from paddleseg_segformer.inference import Segmenter, TestConfig
from paddleseg_segformer.inference import segmenter as segmenter_module
from paddleseg_segformer.inference.segmenter import AugmentedInput, SlidingWindows


class ByColor(paddle.nn.Layer):
    """Logits that are the image's own channels: class 0 where red is greatest, and so on."""

    def forward(self, x):
        self.seen = [*getattr(self, "seen", []), x.shape[2:]]
        return [x * 10]


@pytest.fixture
def picture(tmp_path):
    """A 40x60 image of blurred color patches, and its file."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, [4, 6, 3]).astype("uint8"), (60, 40))
    cv2.imwrite(str(tmp_path / "image.png"), image)
    return str(tmp_path / "image.png")


def segment(model, transforms, path, **test_config):
    segmenter = Segmenter(model, transforms, TestConfig(**test_config))
    return segmenter([segmenter.views(cv2.imread(path))])[0].numpy()


def test_one_view_is_the_argmax_at_original_size(picture):
    transforms = Compose([Resize((96, 64)), Padding((128, 64)), Normalize([0] * 3, [1] * 3)])
    model = ByColor()
    labels = segment(model, transforms, picture)
    expected = cv2.imread(picture)[:, :, ::-1].argmax(axis=2)
    assert model.seen == [[64, 128]] and labels.shape == (40, 60)
    assert (labels == expected).mean() > 0.97  # but for the borders between patches


def test_transforms_that_leave_bytes(picture):
    """The model is shown floats of them, as in training."""
    labels = segment(ByColor(), Compose([ps.ResizeToFit((96, 64))]), picture)
    expected = cv2.imread(picture)[:, :, ::-1].argmax(axis=2)
    assert (labels == expected).mean() > 0.97  # but for the borders between patches


def test_multi_scale_is_the_mean_softmax_of_views_of_the_original(picture):
    """Against the same written with OpenCV and NumPy alone."""
    transforms = Compose([Resize((96, 64)), Normalize([0] * 3, [1] * 3)])
    model = ByColor()
    labels = segment(model, transforms, picture, scales=(0.5, 1.0, 1.5), flip_horizontal=True)
    assert sorted(model.seen) == [[32, 48]] * 2 + [[64, 96]] * 2 + [[96, 144]] * 2
    image = cv2.imread(picture)[:, :, ::-1].astype("float32")
    total = 0
    for width, height in ((48, 32), (96, 64), (144, 96)):
        logits = cv2.resize(image, (width, height)) / 255 * 10  # colors have no left or right
        logits = paddle.to_tensor(logits.transpose(2, 0, 1)[None])
        logits = F.interpolate(logits, [40, 60], mode="bilinear").numpy()[0]
        total = total + np.exp(logits) / np.exp(logits).sum(axis=0)
    assert (labels == total.argmax(axis=0)).mean() > 0.999


def test_scales_of_transforms_that_do_not_resize(picture):
    """Limits and padding grow with the image, which is then rescaled itself."""
    for transforms in ([], [LimitLong(2048)], [Padding((128, 64))]):
        sizes = []
        for scale in (0.5, 2):
            view = at_scale(Compose(list(transforms)), scale)({"img": picture, "trans_info": []})
            assert view["trans_info"][0] == ("resize", (40, 60))
            sizes.append(view["img"].shape[1:])
        padded = transforms and isinstance(transforms[0], Padding)
        assert sizes == ([(32, 64), (128, 256)] if padded else [(20, 30), (80, 120)])


def test_mirrored_views_are_mirrored_back(picture):
    """A model that finds the left half says, of an image and its mirror image, both halves."""

    class LeftHalf(paddle.nn.Layer):
        def forward(self, x):
            logits = paddle.zeros_like(x[:, :2])
            logits[:, 1] = -5.0
            logits[:, 1, :, : x.shape[3] // 2] = 5.0
            return [logits]

    transforms = Compose([])
    both = segment(LeftHalf(), transforms, picture, flip_horizontal=True)
    once = segment(LeftHalf(), transforms, picture)
    assert once[:, :30].all() and not once[:, 30:].any()
    assert not both.any()  # a tie everywhere: the first class


@pytest.mark.parametrize(
    "crop, stride", [((32, 32), (20, 24)), ((48, 40), (48, 40)), ((99, 99), (5, 5))]
)
def test_sliding_window_is_paddlesegs(crop, stride, monkeypatch):
    from paddleseg.core.infer import slide_inference

    paddle.seed(0)
    model = ps.SegFormer(4, ps.MixVisionTransformer_B0(), 16)
    model.eval()
    image = paddle.randn([1, 3, 75, 90])
    windows = TestConfig(crop_size=crop, stride=stride)
    segmenter = Segmenter(model, Compose([]), windows)
    view = SlidingWindows(AugmentedInput(image[0].numpy(), (), []), windows, align_corners=False)
    parts = segmenter._parts([(view, row, column) for row in view.rows for column in view.columns])
    actual = sum(
        np.einsum("Hh,whc,Ww->cHW", p.row_weights, p.logits.numpy(), p.col_weights) for p in parts
    )
    with paddle.no_grad():
        expected = slide_inference(model, image, crop, stride)[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for band in (512, 20):  # all rows at once, and from the top
        monkeypatch.setattr(segmenter_module, "BAND", band)
        (labels,) = segmenter([[AugmentedInput(image[0].numpy(), (), [])]])
        assert (labels.numpy() == expected.argmax(axis=0)).mean() > 0.999


def test_bands_change_nothing(picture, monkeypatch):
    """Scales, mirrored views and windows together, by bands that cut through windows."""
    transforms = Compose([Resize((96, 64)), Padding((112, 80)), Normalize([0] * 3, [1] * 3)])
    test_config = {"scales": (0.5, 1.0), "flip_horizontal": True, "flip_vertical": True}
    test_config |= {"crop_size": (40, 36), "stride": (24, 20)}
    whole = segment(ByColor(), transforms, picture, **test_config)
    monkeypatch.setattr(segmenter_module, "BAND", 7)
    model = ByColor()
    np.testing.assert_array_equal(segment(model, transforms, picture, **test_config), whole)
    assert len(model.seen) == 4 * (2 * 2 + 4 * 4)  # each window once
