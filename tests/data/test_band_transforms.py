"""Transforms of images of any number of bands, against those of each band alone."""

import random

import numpy as np
import pytest
from paddleseg import transforms as paddleseg

from paddleseg_segformer.data import band_transforms as B
from paddleseg_segformer.data import transforms as T
from paddleseg_segformer.errors import InputError

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 4, [24, 31]).astype("uint8")
BANDS = RNG.integers(0, 256, [24, 31, 6]).astype("uint8")
# Bands of different ranges, beyond 0 to 255, as of floats in own units.
DEEP = BANDS * np.float32([0.06, 1, 30, 400, 0.001, 2]) - np.float32([40, -7, 500, 0, 1, 90])

BRIGHTNESS = {"saturation": None, "hue": None}
TRANSFORMS = [
    T.ResizeToFit((40, 40), ratio_range=(0.5, 2)),
    T.Rescale(1.3),
    T.RandomCategoryCrop((20, 16)),
    T.PhotometricDistortion(**BRIGHTNESS),
    T.Normalize([0.4], [0.2]),
    B.Padding((40, 33)),
    B.ScalePadding((20, 20)),
    B.PaddingByAspectRatio(2),
    B.RandomPaddingCrop((40, 16)),
    B.RandomRotation(30),
    B.RandomBlur(1),
    B.RandomBlur(1, "blur"),
    *[B.Resize((19, 17), interp=name) for name in (*paddleseg.Resize.interp_dict, "RANDOM")],
    paddleseg.ResizeByLong(44),
    paddleseg.ResizeByShort(20),
    paddleseg.LimitLong(max_long=20),
    paddleseg.ResizeRangeScaling(20, 50),
    paddleseg.ResizeStepScaling(0.5, 2, 0.25),
    paddleseg.RandomCenterCrop(),
    paddleseg.RandomHorizontalFlip(1),
    paddleseg.RandomVerticalFlip(1),
    paddleseg.RandomScaleAspect(),
]
EIGHT_BIT = [B.RandomAffine((20, 22), 4), B.RandomBlur(1, "median"), B.RandomBlur(1, "random")]


def name(transform):
    return type(transform).__name__


def apply(transform, image, seed=3):
    """A sample as ``Compose`` would give it to the transform and take it back, with a seed."""
    np.random.seed(seed)
    random.seed(seed)
    sample = {"img": np.squeeze(image), "label": LABEL, "gt_fields": ["label"]}
    return T.Compose([transform])(sample)


def assert_bands_are_transformed_alike(transform, image, seed):
    actual = apply(transform, image, seed)
    for i in range(image.shape[2]):
        expected = apply(transform, image[:, :, i], seed)
        scale = 1 if image.dtype == np.uint8 else np.ptp(image[:, :, i])
        # Interpolation depends on the number of bands in the last bit.
        atol = 1.01 if np.issubdtype(expected["img"].dtype, np.uint8) else 1e-3 * scale
        assert actual["img"][i].shape == expected["img"][0].shape
        np.testing.assert_allclose(
            actual["img"][i].astype(float), expected["img"][0], rtol=1e-5, atol=atol
        )
        np.testing.assert_array_equal(actual["label"], expected["label"])
        assert actual["trans_info"] == expected["trans_info"]
    return actual["img"]


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("transform", TRANSFORMS + EIGHT_BIT, ids=name)
def test_8_bit_bands_are_transformed_alike(transform, bands):
    for seed in range(3):
        assert_bands_are_transformed_alike(transform, BANDS[:, :, :bands], seed)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=name)
def test_deep_bands_are_transformed_alike_and_keep_their_range(transform, bands):
    for seed in range(3):
        out = assert_bands_are_transformed_alike(transform, DEEP[:, :, :bands], seed)
    assert out.dtype == np.float32
    if bands < 6 or name(transform) in ("Normalize", "PhotometricDistortion"):
        return
    # Not rounded to whole numbers, and not clipped to 255: see the ranges of DEEP.
    assert len(np.unique(np.round(out[4], 6))) > 20 and out[3].max() > 10_000


@pytest.mark.parametrize("transform", [*EIGHT_BIT, B.RandomNoise(1), B.RandomDistort()], ids=name)
def test_transforms_for_8_bits_refuse_others(transform):
    with pytest.raises(InputError, match=rf"^{name(transform)}.* is for 8-bit images only; \w+ "):
        apply(transform, DEEP[:, :, :3])


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
def test_color_transforms_refuse_what_is_not_rgb(bands):
    for transform in (T.PhotometricDistortion(), T.PhotometricDistortion(saturation=None)):
        with pytest.raises(
            InputError, match=r"8-bit RGB images only; set saturation: null and hue"
        ):
            apply(transform, BANDS[:, :, :bands])
    with pytest.raises(InputError, match=r"^PhotometricDistortion changes saturation and hue"):
        apply(T.PhotometricDistortion(), DEEP[:, :, :3])
    with pytest.raises(InputError, match=r"^RandomDistort is for RGB images only; use Photometric"):
        apply(B.RandomDistort(), BANDS[:, :, :bands])
    gray = apply(B.RandomDistort(saturation_prob=0, hue_prob=0), BANDS[:, :, 0])
    assert gray["img"].shape == (1, 24, 31)


def test_8_bit_rgb_is_transformed_as_by_paddleseg():
    for kind in ("Padding", "PaddingByAspectRatio", "RandomPaddingCrop", "RandomRotation"):
        compare(getattr(B, kind), getattr(paddleseg, kind), {"Padding": ((40, 33),)}.get(kind, ()))
    for kind in ("RandomAffine", "RandomNoise", "RandomDistort", "RandomBlur", "Resize"):
        compare(getattr(B, kind), getattr(paddleseg, kind), ())


def compare(ours, theirs, arguments):
    image = BANDS[:, :, :3]
    expected = apply(theirs(*arguments), image)
    np.testing.assert_array_equal(apply(ours(*arguments), image)["img"], expected["img"])


@pytest.mark.parametrize("kind", ["gaussian", "blur"])
@pytest.mark.parametrize("prob", [0, 0.3, 1])
def test_deep_images_are_blurred_as_8_bit_ones(kind, prob):
    """With the same random numbers; 8 bits are rounded."""
    for seed in range(20):
        expected = apply(paddleseg.RandomBlur(prob, kind), BANDS[:, :, :3], seed)["img"]
        actual = apply(B.RandomBlur(prob, kind), BANDS[:, :, :3] + np.float32(0), seed)["img"]
        np.testing.assert_allclose(actual, expected, atol=1)


def test_brightness_and_contrast_of_floats_computed_by_hand(monkeypatch):
    """Of the band's range: 10 to 50; a shift of 51 is a fifth of it, 8."""
    image = np.float32([[10, 30, 50]])
    distort = T.PhotometricDistortion(brightness=60, contrast=(0.5, 3), **BRIGHTNESS)
    for coins, numbers, expected in (
        ([1, 0, 0], [51.0], [18, 38, 58]),
        ([0, 1, 0], [2.0], [10, 50, 90]),
        ([1, 1, 1], [-51.0, 0.5], [2, 12, 22]),
        ([0, 0, 1], [], [10, 30, 50]),
    ):
        integers, floats = iter(coins), iter(numbers)
        monkeypatch.setattr(np.random, "randint", lambda _, queue=integers: next(queue))
        monkeypatch.setattr(np.random, "uniform", lambda *_, queue=floats: next(queue))
        out = distort({"img": image, "is_8bit": False})["img"]
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, [expected], rtol=1e-6)
        assert next(integers, None) is None and next(floats, None) is None


def test_compose_says_whether_the_image_was_8_bit():
    for image, expected in ((BANDS, True), (DEEP, False)):
        assert T.Compose([B.Resize((8, 8))])({"img": image})["is_8bit"] is expected


def test_padding_does_not_change_the_range_of_brightness(monkeypatch):
    """It is 127.5, far above 12-bit values in 16 bits."""
    image = np.float32(np.random.default_rng(0).uniform(2, 12, [8, 8, 4]))
    distort = T.PhotometricDistortion(contrast=(2, 2), **BRIGHTNESS)
    results = []
    for transforms in ([distort], [B.Padding((16, 16)), distort]):
        coins = iter([1, 1, 1])
        monkeypatch.setattr(np.random, "randint", lambda _, coins=coins: next(coins))
        monkeypatch.setattr(np.random, "uniform", lambda low, high: high)
        results.append(T.Compose(transforms)({"img": image, "gt_fields": []})["img"][:, :8, :8])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


@pytest.mark.parametrize("bands", [1, 3, 6])
@pytest.mark.parametrize("kind", [B.Padding, B.RandomPaddingCrop])
def test_a_padding_value_for_each_band_is_refused(kind, bands):
    transform = kind((40, 40), im_padding_value=[0] * bands)
    with pytest.raises(InputError, match=r"im_padding_value is \[0.*\]; it must be one number"):
        transform({"img": BANDS[..., :bands], "trans_info": [], "gt_fields": []})
