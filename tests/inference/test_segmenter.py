"""Test-time augmentation and sliding windows, against their definitions and PaddleSeg."""

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddleseg.cvlibs import manager
from paddleseg.models import FCN
from paddleseg.transforms import LimitLong, Normalize, Padding, Resize
from reference import TINY, random_state

import paddleseg_segformer as ps
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.data.transforms import Compose, at_scale
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.inference import Segmenter, TestConfig, load_model
from paddleseg_segformer.inference import segmenter as segmenter_module
from paddleseg_segformer.inference.sliding_window import SlidingWindows
from paddleseg_segformer.inference.tta import AugmentedInput


class ByColor(paddle.nn.Layer):
    """A model whose logits are the image's channels: class 0 where red is greatest, and so on."""

    def forward(self, x):
        self.sizes = [*getattr(self, "sizes", []), x.shape[2:]]
        return [x * 10]


@pytest.fixture
def image(tmp_path):
    """The file of a 40x60 image of blurred color patches."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, [4, 6, 3]).astype("uint8"), (60, 40))
    cv2.imwrite(str(tmp_path / "image.png"), image)
    return str(tmp_path / "image.png")


def segment(model, transforms, path, **test_config):
    segmenter = Segmenter(model, transforms, TestConfig(**test_config))
    return segmenter([segmenter.augmented_inputs(read_image(path))])[0].numpy()


def test_single_scale_is_the_argmax_at_the_original_size(image):
    transforms = [Resize((96, 64)), Padding((128, 64)), Normalize([0] * 3, [1] * 3)]
    model = ByColor()
    labels = segment(model, transforms, image)
    expected = read_image(image).argmax(axis=2)
    assert model.sizes == [[64, 128]] and labels.shape == (40, 60)
    assert (labels == expected).mean() > 0.97  # all but the borders between patches


def test_transforms_that_return_uint8(image):
    """The model gets float32, as in training."""
    labels = segment(ByColor(), [ps.ResizeToFit((96, 64))], image)
    expected = read_image(image).argmax(axis=2)
    assert (labels == expected).mean() > 0.97  # all but the borders between patches


def test_multi_scale_is_the_mean_softmax_over_scales_of_the_original_image(image):
    """Against an implementation in OpenCV and NumPy."""
    transforms = [Resize((96, 64)), Normalize([0] * 3, [1] * 3)]
    model = ByColor()
    labels = segment(model, transforms, image, scales=(0.5, 1.0, 1.5), flip_horizontal=True)
    assert sorted(model.sizes) == [[32, 48]] * 2 + [[64, 96]] * 2 + [[96, 144]] * 2
    pixels = read_image(image).astype("float32")
    total = 0
    for width, height in ((48, 32), (96, 64), (144, 96)):
        logits = cv2.resize(pixels, (width, height)) / 255 * 10  # the same for flipped inputs
        logits = paddle.to_tensor(logits.transpose(2, 0, 1)[None])
        logits = F.interpolate(logits, [40, 60], mode="bilinear").numpy()[0]
        total = total + np.exp(logits) / np.exp(logits).sum(axis=0)
    assert (labels == total.argmax(axis=0)).mean() > 0.999


def test_scales_of_transforms_that_do_not_resize(image):
    """The image itself is rescaled, and limits and padding are multiplied."""
    for transforms in ([], [LimitLong(2048)], [Padding((128, 64))]):
        sizes = []
        for scale in (0.5, 2):
            sample = Compose(at_scale(list(transforms), scale))({"img": read_image(image)})
            assert sample["trans_info"][0] == ("resize", (40, 60))
            sizes.append(sample["img"].shape[1:])
        padded = transforms and isinstance(transforms[0], Padding)
        assert sizes == ([(32, 64), (128, 256)] if padded else [(20, 30), (80, 120)])


def test_flipped_logits_are_flipped_back(image):
    """A model of the left half finds, in an image and its flipped copy, both halves."""

    class LeftHalf(paddle.nn.Layer):
        def forward(self, x):
            logits = paddle.zeros_like(x[:, :2])
            logits[:, 1] = -5.0
            logits[:, 1, :, : x.shape[3] // 2] = 5.0
            return [logits]

    both = segment(LeftHalf(), [], image, flip_horizontal=True)
    single = segment(LeftHalf(), [], image)
    assert single[:, :30].all() and not single[:, 30:].any()
    assert not both.any()  # a tie everywhere: the first class


def test_flipped_windows_are_flipped_back(image):
    """A model of single pixels finds the same in an image and in its flipped windows."""
    options = {"flip_horizontal": True, "flip_vertical": True, "crop_size": (24, 16)}
    labels = segment(ByColor(), [Normalize([0] * 3, [1] * 3)], image, stride=(16, 12), **options)
    np.testing.assert_array_equal(labels, read_image(image).argmax(axis=2))


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
    segmenter = Segmenter(model, [], windows)
    item = AugmentedInput(image[0].numpy(), (), [])
    grid = SlidingWindows(item, windows, align_corners=False)
    keys = [(row, column) for row in grid.rows for column in grid.columns]
    logits = segmenter._window_logits([(grid, *key) for key in keys])
    whole = slice(0, 75), slice(0, 90)
    logits = [grid.window_logits(*key, x, whole) for key, x in zip(keys, logits)]
    actual = sum(
        np.einsum("Hh,hwc,Ww->cHW", window.row_weights, window.logits.numpy(), window.col_weights)
        for window in logits
    )
    with paddle.no_grad():
        expected = slide_inference(model, image, crop, stride)[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for height in (512, 20):  # all rows in one band, and several bands
        monkeypatch.setattr(segmenter_module, "BAND_HEIGHT", height)
        (labels,) = segmenter([[item]])
        assert (labels.numpy() == expected.argmax(axis=0)).mean() > 0.999


def test_bands_do_not_change_the_result(image, monkeypatch):
    """Multi-scale, flips and windows together, with bands that cut through windows."""
    transforms = [Resize((96, 64)), Padding((112, 80)), Normalize([0] * 3, [1] * 3)]
    test_config = {"scales": (0.5, 1.0), "flip_horizontal": True, "flip_vertical": True}
    test_config |= {"crop_size": (40, 36), "stride": (24, 20)}
    whole = segment(ByColor(), transforms, image, **test_config)
    monkeypatch.setattr(segmenter_module, "BAND_HEIGHT", 7)
    model = ByColor()
    np.testing.assert_array_equal(segment(model, transforms, image, **test_config), whole)
    assert len(model.sizes) == 4 * (2 * 2 + 4 * 4)  # the model runs once per window


def test_a_model_is_loaded_whole_and_without_its_pretrained_weights():
    config = load_config("configs/quickstart.yaml", ["model.pretrained=absent"])
    config.dic["model"]["embedding_dim"] = 6
    config.dic["model"]["backbone"] = {"type": "MixVisionTransformer", "pretrained": "no", **TINY}
    state = random_state(classes=150)
    model = load_model(config, state)
    assert not model.training
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name])
    assert config.dic["model"]["pretrained"] == "absent"
    assert config.dic["model"]["backbone"]["pretrained"] == "no"
    for lacking in (random_state(), {n: v for n, v in state.items() if "backbone" in n}):
        with pytest.raises(ps.InputError, match=r"has no linear_\S+ of this model; it is a"):
            load_model(config, lacking)


def test_a_backbone_that_requires_pretrained_weights_is_loaded_without(monkeypatch):
    def backbone(pretrained, in_channels):  # as SeaFormer_tiny of PaddleSeg's development branch
        assert pretrained is None
        return ps.MixVisionTransformer(**TINY)

    monkeypatch.setitem(manager.BACKBONES.components_dict, "Needy", backbone)
    config = load_config("configs/quickstart.yaml")
    config.dic["model"] |= {"embedding_dim": 6, "backbone": {"type": "Needy", "pretrained": "no"}}
    load_model(config, random_state(classes=150))


class NarrowBackbone(paddle.nn.Layer):
    """A backbone whose maps have fewer channels than it says."""

    feat_channels = (8, 16)

    def forward(self, x):
        return [x, x]


def test_a_model_of_paddleseg_that_does_not_fit_its_backbone_is_an_input_error(image):
    model = FCN(num_classes=3, backbone=NarrowBackbone(), backbone_indices=(1,))
    segmenter = Segmenter(model, [Normalize()], TestConfig())
    maps = "backbone, whose feature maps have 8, 16 channels; check model.backbone, "
    keys = "model.backbone_indices, model.channels: .*channels"
    with pytest.raises(InputError, match=f"^model: FCN does not fit .* {maps}{keys}"):
        segmenter([segmenter.augmented_inputs(read_image(image))])


def test_an_error_of_types_is_not_taken_for_a_misfit(image, monkeypatch):
    def concatenate(*_):  # as PointRend on Paddle 3
        return paddle.concat([paddle.zeros([1], "int64"), paddle.zeros([1], "int32")])

    model = FCN(num_classes=3, backbone=NarrowBackbone(), backbone_indices=(1,))
    monkeypatch.setattr(model, "forward", concatenate)
    segmenter = Segmenter(model, [Normalize()], TestConfig())
    with pytest.raises(ValueError, match="data_type"):
        segmenter([segmenter.augmented_inputs(read_image(image))])


def test_a_users_model_keeps_its_traceback(image):
    class Broken(paddle.nn.Layer):
        def forward(self, x):
            return paddle.concat([x, x[:, :1, :2]])

    segmenter = Segmenter(Broken(), [Normalize()], TestConfig())
    with pytest.raises(ValueError, match="InvalidArgument"):
        segmenter([segmenter.augmented_inputs(read_image(image))])
