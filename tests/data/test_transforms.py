"""Each transform against its definition for given random numbers, and their distributions."""

import cv2
import numpy as np
import pytest
from paddleseg import transforms as paddleseg

from paddleseg_segformer.data import band_transforms
from paddleseg_segformer.data import transforms as T
from paddleseg_segformer.errors import InputError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, [90, 140, 3]).astype("uint8")
LABEL = np.repeat(np.repeat(RNG.integers(0, 4, [9, 14]), 10, 0), 10, 1).astype("uint8")
LABEL[:9] = 255


def sample(image=IMAGE, label=LABEL):
    return {"img": image, "label": label, "gt_fields": ["label"], "trans_info": []}


def draws(monkeypatch, **queues):
    """Mock NumPy's generator to return these numbers; returns the list of the calls' arguments."""
    calls = []

    def mock(queue):
        def draw(*arguments):
            calls.append(arguments)
            return next(queue)

        return draw

    for name, queue in queues.items():
        monkeypatch.setattr(np.random, name, mock(iter(queue)))
    return calls


@pytest.mark.parametrize(
    "size, target, expected",
    [
        ((683, 512), (2048, 512), (683, 512)),
        ((512, 683), (2048, 512), (512, 683)),
        ((1000, 100), (2048, 512), (2048, 205)),  # bounded by the longer side: 204.8 is rounded
        ((256, 341), (2048, 512), (512, 682)),
        ((1, 1000), (100, 50), (1, 100)),  # 0.1 pixels are one
        ((1000, 1), (100, 50), (100, 1)),
    ],
)
def test_fit(size, target, expected):
    """Sizes (height, width) computed by hand."""
    out = T.ResizeToFit(target)(sample(np.zeros([*size, 3], "uint8"), np.zeros(size, "uint8")))
    assert out["img"].shape[:2] == out["label"].shape == expected
    assert out["trans_info"] == [("resize", size)]


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_rescale_keeps_at_least_one_pixel(size):
    out = T.Rescale(0.1)({"img": np.zeros([*size, 3], "uint8")})
    assert sorted(out["img"].shape[:2]) == [1, 100]


def test_fit_resizes_the_8_bit_image_once_to_the_rounded_size():
    image = IMAGE.astype("float32")  # as in PaddleSeg's data sets
    out = T.ResizeToFit((400, 100), size_divisor=32)({"img": image, "trans_info": []})
    factor = min(400 / 140, 100 / 90)
    width, height = (int(side * factor + 0.5) for side in (140, 90))
    assert (width, height) == (156, 100)
    np.testing.assert_array_equal(out["img"], cv2.resize(IMAGE, (160, 128)))


def test_fit_with_a_random_ratio(monkeypatch):
    draws(monkeypatch, uniform=[0.7])
    out = T.ResizeToFit((200, 80), ratio_range=(0.5, 2.0))(sample())
    factor = 0.7 * min(200 / 140, 80 / 90)
    size = int(140 * factor + 0.5), int(90 * factor + 0.5)
    np.testing.assert_array_equal(out["img"], cv2.resize(IMAGE, size))
    nearest = cv2.resize(LABEL, size, interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(out["label"], nearest)


def test_ratios_are_uniform():
    np.random.seed(0)
    fit = T.ResizeToFit((2000, 1000), ratio_range=(0.5, 2.0))
    image = np.zeros([10, 20, 3], "uint8")
    heights = [fit({"img": image, "trans_info": []})["img"].shape[0] for _ in range(300)]
    assert 500 <= min(heights) < 520 and 1980 < max(heights) <= 2000
    quartiles = np.percentile(heights, [25, 50, 75])
    np.testing.assert_allclose(quartiles, [875, 1250, 1625], atol=150)  # 3.5 standard errors


def test_crop_takes_the_first_window_within_the_limit(monkeypatch):
    """Windows of 40x30 at (top, left), with the largest class counted in a loop."""
    label = np.zeros([90, 140], "uint8")
    label[:, 70:] = 1
    label[80:] = 255
    windows = [(0, 0), (10, 45), (5, 90), (20, 50), (0, 60)]
    shares = []
    for top, left in windows:
        valid = [v for v in label[top : top + 30, left : left + 40].ravel() if v != 255]
        shares.append(max(valid.count(c) for c in (0, 1)) / len(valid))
    assert [share > 0.75 for share in shares] == [True, False, True, False, False]
    drawn = [n for window in windows for n in window]
    draws(monkeypatch, randint=drawn)
    out = T.RandomCategoryCrop((40, 30), category_max_ratio=0.75)(sample(label=label))
    np.testing.assert_array_equal(out["img"], IMAGE[10:40, 45:85])
    np.testing.assert_array_equal(out["label"], label[10:40, 45:85])


@pytest.mark.parametrize("dtype, ignored", [("uint8", 9), ("int64", 9), ("int64", -1)])
def test_a_class_may_cover_three_quarters_of_the_valid_pixels(monkeypatch, dtype, ignored):
    """Windows of 8 pixels: 4 of 5 are one class, then 3 of 4."""
    label = np.array([[1, 1, 1, 1, 2, 9, 9, 9], [1, 1, 1, 2, 9, 9, 9, 9]])
    label = np.where(label == 9, ignored, label).astype(dtype)
    draws(monkeypatch, randint=[0, 0, 1, 0])
    crop = T.RandomCategoryCrop((8, 1), category_max_ratio=0.75, ignore_index=ignored)
    out = crop(sample(np.zeros([2, 8, 3], "uint8"), label))
    np.testing.assert_array_equal(out["label"], label[1:])


def test_crop_uses_the_last_of_ten_tries(monkeypatch):
    windows = [(i, 2 * i) for i in range(20)]
    draws(monkeypatch, randint=[n for window in windows for n in window])
    out = T.RandomCategoryCrop((40, 30))(sample(label=np.zeros([90, 140], "uint8")))
    np.testing.assert_array_equal(out["img"], IMAGE[9:39, 18:58])


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_crop_of_ignored_pixels_only_is_drawn_again(monkeypatch, dtype):
    draws(monkeypatch, randint=[0, 0, 40, 40])
    label = LABEL.astype(dtype)
    label[:40] = 255
    out = T.RandomCategoryCrop((40, 30), category_max_ratio=1.0)(sample(label=label))
    np.testing.assert_array_equal(out["label"], label[40:70, 40:80])


def test_crop_larger_than_the_image():
    out = T.RandomCategoryCrop((200, 50))(sample())
    assert out["img"].shape == (50, 140, 3) and out["label"].shape == (50, 140)


def test_crop_positions_are_uniform():
    np.random.seed(0)
    ramp = np.stack([np.arange(64).reshape(8, 8)] * 3, -1).astype("uint8")
    crop = T.RandomCategoryCrop((7, 7), category_max_ratio=1.0)
    corners = [int(crop(sample(ramp, ramp[..., 0]))["label"][0, 0]) for _ in range(2000)]
    counts = [corners.count(corner) for corner in (0, 1, 8, 9)]
    assert sum(counts) == 2000
    np.testing.assert_allclose(counts, 500, atol=80)  # 4 standard deviations


def distorted(image, shift=None, contrast=None, first=True, saturation=None, hue=None):
    """Reference distortion: float arithmetic on pixels, rounded after each change."""

    def scale(values, factor, offset=0.0):
        return np.clip(np.floor(values.astype("float64") * factor + offset + 0.5), 0, 255)

    if shift is not None:
        image = scale(image, 1, shift).astype("uint8")
    if contrast is not None and first:
        image = scale(image, contrast).astype("uint8")
    if saturation is not None or hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if saturation is not None:
            hsv[..., 1] = scale(hsv[..., 1], saturation)
        if hue is not None:
            hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and not first:
        image = scale(image, contrast).astype("uint8")
    return image


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shift": -20.3},
        {"contrast": 1.37},
        {"contrast": 0.6, "first": False, "saturation": 1.4},
        {"saturation": 0.55},
        {"hue": -18},
        {"shift": 31.9, "contrast": 1.5, "first": True, "saturation": 1.5, "hue": 7},
        {"shift": 3.0, "contrast": 0.5, "first": False, "saturation": 0.9, "hue": 18},
    ],
)
def test_distortion(monkeypatch, changes):
    np.testing.assert_array_equal(distort(monkeypatch, IMAGE, changes), distorted(IMAGE, **changes))


def distort(monkeypatch, image, changes):
    """``PhotometricDistortion`` with these random numbers."""
    is_changed = {k: k in changes for k in ("shift", "contrast", "saturation", "hue")}
    shift, contrast, saturation, hue = is_changed.values()
    coins = [shift, contrast, changes.get("first", True), saturation, hue]
    integers = [*map(int, coins), *([changes["hue"]] if hue else [])]
    numbers = [changes[k] for k in ("shift", "contrast", "saturation") if k in changes]
    draws(monkeypatch, randint=integers, uniform=numbers)
    return T.PhotometricDistortion()(sample(image))["img"]


@pytest.mark.parametrize(
    "before, changes, after",
    [
        ((255, 0, 0), {"hue": 15}, (255, 127.5, 0)),  # red by 30 degrees is orange
        ((255, 0, 0), {"hue": -18}, (255, 0, 153)),  # by -36 degrees
        ((200, 100, 100), {"saturation": 0.5}, (200, 150, 150)),
        ((100, 90, 80), {"shift": 32, "contrast": 1.5}, (198, 183, 168)),  # brightness first
        # Contrast clips red. Before: (255, 150, 97.5) has hue 20 and saturation 0.62, then 0.93.
        ((200, 100, 65), {"contrast": 1.5, "saturation": 1.5}, (255, 98, 19)),
        # After: (200, 100, 65) has hue 15.6 and saturation 0.68, then 1: (200, 52, 0).
        ((200, 100, 65), {"contrast": 1.5, "saturation": 1.5, "first": False}, (255, 78, 0)),
    ],
)
def test_distortion_computed_by_hand(monkeypatch, before, changes, after):
    pixel = distort(monkeypatch, np.full([1, 1, 3], before, "uint8"), changes)[0, 0]
    np.testing.assert_allclose(pixel, after, atol=2.5)  # hues are stored in steps of 2 degrees


def test_distortion_uses_the_papers_ranges(monkeypatch):
    """Coins, brightness, contrast, saturation, hue in this order; randint excludes its end."""
    calls = draws(monkeypatch, randint=[1, 1, 1, 1, 1, 0], uniform=[0.0, 1.0, 1.0])
    T.PhotometricDistortion()(sample())
    coin, contrast, saturation = (2,), (0.5, 1.5), (0.5, 1.5)
    brightness, hue = (-32, 32), (-18, 19)
    assert calls == [coin, brightness, coin, contrast, coin, coin, saturation, coin, hue]


def test_hue_and_saturation_change_with_probability_half():
    """On a colored pixel, without changes of brightness and contrast."""
    np.random.seed(0)
    distort = T.PhotometricDistortion(brightness=0, contrast=(1, 1))
    pixel = np.full([1, 1, 3], (200, 80, 120), "uint8")
    hsv = [
        cv2.cvtColor(distort({"img": pixel})["img"], cv2.COLOR_RGB2HSV)[0, 0] for _ in range(2000)
    ]
    hue, saturation, _ = np.array(hsv, dtype=int).T
    before = cv2.cvtColor(pixel, cv2.COLOR_RGB2HSV)[0, 0].astype(int)
    shift = (hue - before[0] + 90) % 180 - 90
    assert abs(shift).max() in (18, 19) and (abs(shift) > 1).mean() == pytest.approx(0.46, abs=0.05)
    factor = saturation / before[1]
    assert 0.48 < factor.min() < 0.53 and 1.45 < factor.max() < 1.52
    assert (abs(factor - 1) > 0.02).mean() == pytest.approx(0.48, abs=0.05)


def test_brightness_and_contrast_ranges_and_probabilities():
    """On a gray pixel, which only brightness and contrast can change."""
    np.random.seed(0)
    distort = T.PhotometricDistortion()
    gray = np.full([1, 1, 3], 100, "uint8")
    values = np.array([int(distort({"img": gray})["img"][0, 0, 0]) for _ in range(4000)])
    assert (values == 100).mean() == pytest.approx(0.25, abs=0.05)  # neither of the two
    assert values.min() < 45 and values.max() > 185  # (100 -+ 32) x 0.5 or 1.5
    assert values.min() >= 34 and values.max() <= 198


AFTER_NORMALIZE = (IMAGE / 255 - 0.5) / 0.25


@pytest.mark.parametrize("transform", [T.ResizeToFit((200, 80)), T.PhotometricDistortion()])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_8_bit_transforms_reject_normalized_images(transform, dtype):
    name = type(transform).__name__
    with pytest.raises(InputError, match=f"^{name} must come before Normalize"):
        transform(sample(AFTER_NORMALIZE.astype(dtype)))


def test_overshoots_of_cubic_interpolation_are_clipped(monkeypatch):
    draws(monkeypatch, randint=[0] * 5)
    image = np.array([[[-20, 0, 255], [275, 128, 3]]], "float32")
    out = T.PhotometricDistortion()(sample(image))["img"]
    np.testing.assert_array_equal(out, [[[0, 0, 255], [255, 128, 3]]])


@pytest.mark.parametrize(
    "kind, options, match",
    [
        (T.ResizeToFit, {"ratio_range": []}, r"ratio_range must be two positive numbers, not \[\]"),
        (T.ResizeToFit, {"size_divisor": 0}, "size_divisor must be a whole number above 0, not 0"),
        (T.ResizeToFit, {"size_divisor": -32}, "size_divisor"),
        (T.ResizeToFit, {"size_divisor": 32.0}, "size_divisor"),
        (T.RandomCategoryCrop, {"crop_size": [64.5, 64]}, "crop_size must be two whole numbers"),
        (T.RandomCategoryCrop, {"crop_size": [64, 0]}, "crop_size must be two whole numbers"),
        (T.RandomCategoryCrop, {"crop_size": 64}, "crop_size must be two whole numbers"),
        (T.RandomCategoryCrop, {"tries": 0}, "tries must be a whole number above 0, not 0"),
        (T.RandomCategoryCrop, {"tries": 2.5}, "tries must be a whole number above 0"),
        (T.RandomCategoryCrop, {"tries": True}, "tries must be a whole number above 0, not True"),
        (T.RandomCategoryCrop, {"category_max_ratio": True}, "category_max_ratio must be above 0"),
        (T.ResizeToFit, {"ratio_range": [True, 2]}, "ratio_range must be two positive numbers"),
        (T.RandomCategoryCrop, {"category_max_ratio": 75}, "category_max_ratio must be .* not 75"),
        (T.RandomCategoryCrop, {"category_max_ratio": 0}, "category_max_ratio must be above 0"),
        (T.PhotometricDistortion, {"contrast": 0.5}, "contrast must be two numbers of at least 0"),
        (
            T.PhotometricDistortion,
            {"saturation": [0.5]},
            "saturation must be two numbers of at least 0",
        ),
        (
            T.PhotometricDistortion,
            {"saturation": "ab"},
            "saturation must be two numbers of at least 0",
        ),
    ],
)
def test_invalid_arguments(kind, options, match):
    sizes = {T.ResizeToFit: {"target_size": (64, 64)}, T.RandomCategoryCrop: {"crop_size": (9, 9)}}
    with pytest.raises(ValueError, match=f"^{match}"):
        kind(**{**sizes.get(kind, {}), **options})


@pytest.mark.parametrize("resizes", [[], [paddleseg.Resize((9, 9))]])
def test_normalize_rejects_a_mean_of_0_to_255(resizes):
    normalize = T.Normalize([123.675, 116.28, 103.53], [58.4, 57.1, 57.4])
    with pytest.raises(InputError, match=r"^Normalize: mean \[123\.675, .* divide mean and std by"):
        T.Compose([*resizes, normalize])({"img": IMAGE})


@pytest.mark.parametrize("values", [IMAGE * np.float32(255), IMAGE, np.zeros([9, 9, 3])])
def test_floats_in_own_units_may_have_any_mean(values):
    """Also where all are between 0 and 1, such as elevations in a window of a raster at the sea."""
    normalize = T.Normalize([123.675, 116.28, 103.53], [58.4, 57.1, 57.4])
    values = np.float32(values)
    expected = (values / 255 - normalize.mean) / normalize.std
    composed = T.Compose([normalize])({"img": values})["img"].transpose(1, 2, 0)
    for actual in (composed, normalize({"img": values})["img"]):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("bands", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_normalize_needs_one_number_or_one_per_band(bands, dtype):
    image = np.squeeze(np.ones([5, 6, bands], dtype))
    problem = f"^Normalize: mean and std are for 3 bands, but the images have {bands}"
    for mean, std in (([0.4, 0.5, 0.6], [0.2]), ([0.5], [0.1, 0.2, 0.3])):
        with pytest.raises(InputError, match=problem):
            T.Normalize(mean, std)({"img": image})
    with pytest.raises(ValueError, match=r"^mean and std must have one number .* not 3 and 4"):
        T.Normalize([0.4, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4])


def test_normalize_with_one_number_for_all_channels():
    actual = T.Normalize(0.5, 0.25)({"img": IMAGE})["img"]
    np.testing.assert_allclose(actual, AFTER_NORMALIZE, atol=1e-6)


@pytest.mark.parametrize(
    "mean, std", [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5], [0.25])]
)
def test_normalize_is_paddlesegs(mean, std):
    image = np.arange(256, dtype="uint8").repeat(3).reshape(16, 16, 3)
    image[:, :, 1] = image[::-1, :, 1]
    expected = paddleseg.Normalize(mean, std)({"img": image.astype("float32")})["img"]
    for kind in ("uint8", "float32"):
        actual = T.Normalize(mean, std)({"img": image.astype(kind)})["img"]
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("target", [[6, 4], (6, 4), [6, 6], (9, 4)])
def test_padding_is_paddlesegs(target):
    image = np.random.default_rng(0).random([4, 6, 3]).astype("float32")
    label = np.ones([4, 6], "uint8")
    results = []
    for padding in (band_transforms.Padding, paddleseg.Padding):
        sample = {"img": image, "label": label, "gt_fields": ["label"], "trans_info": []}
        results.append(padding(target, 0, 255)(sample))
    actual, expected = results
    assert actual["trans_info"] == expected["trans_info"]
    for key in ("img", "label"):
        np.testing.assert_array_equal(actual[key], expected[key])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("short, before, after", [(1, 1, 2), (2, 1, 1), (3, 0, 1), (4, 0, 0)])
def test_scale_padding_centers_the_label(short, before, after, transposed):
    """Padded to 4x4, then resized to 8x8, where each label is repeated."""
    label = np.arange(4 * short, dtype="uint8").reshape(short, 4)
    square = np.concatenate([np.full([before, 4], 77), label, np.full([after, 4], 77)])
    label, square = (label.T, square.T) if transposed else (label, square)
    padding = band_transforms.ScalePadding((8, 8), im_padding_value=0, label_padding_value=77)
    out = padding(sample(np.full([*label.shape, 3], 200, "uint8"), label))
    np.testing.assert_array_equal(out["label"], square.repeat(2, 0).repeat(2, 1))
    in_the_square = out["img"][1::2, 1::2, 0] > 100  # the image's pixels, at the label's scale
    np.testing.assert_array_equal(in_the_square, square != 77)


@pytest.mark.parametrize("fields", [{}, {"gt_fields": []}], ids=["prediction", "validation"])
def test_scale_padding_is_for_training_only(fields):
    with pytest.raises(InputError, match=r"^ScalePadding is for training only"):
        band_transforms.ScalePadding((8, 8))({"img": IMAGE, "trans_info": [], **fields})


def test_compose_keeps_8_bit_images_until_a_transform_needs_floats():
    dtypes = []

    class Spy:
        def __call__(self, sample):
            dtypes.append(sample["img"].dtype.name)
            return sample

    exact = [T.ResizeToFit((32, 32)), paddleseg.RandomHorizontalFlip(1)]
    out = T.Compose(exact)({"img": IMAGE})
    assert out["img"].dtype == np.uint8 and out["img"].shape == (3, 21, 32)
    assert out["trans_info"] == [("resize", (90, 140))]
    out = T.Compose([*exact, Spy(), T.PhotometricDistortion(), Spy()])({"img": IMAGE})
    assert dtypes == ["float32"] * 2 and out["img"].dtype == np.float32
    assert T.Compose([])({"img": IMAGE[:, :, 0]})["img"].shape == (1, 90, 140)


@pytest.mark.parametrize(
    "transform, half, double",
    [
        (T.ResizeToFit((280, 100)), (50, 78), (200, 311)),  # the shorter side is the bound
        (T.ResizeToFit((100, 150)), (48, 75), (193, 300)),  # the longer side is
        (paddleseg.Resize((60, 40)), (20, 30), (80, 120)),
        (paddleseg.ResizeByLong(140), (45, 70), (180, 280)),
        (paddleseg.ResizeByShort(90), (45, 70), (180, 280)),
    ],
    ids=lambda value: getattr(type(value), "__name__", None),
)
def test_a_scale_multiplies_the_size_of_a_resize(transform, half, double):
    """Sizes (height, width) computed by hand; the original image of 90x140 is resized once."""
    transforms = [transform]
    for scale, expected in ((0.5, half), (2, double), (0.5, half)):
        out = T.Compose(T.at_scale(transforms, scale))({"img": IMAGE})
        assert out["img"].shape[1:] == expected
        assert out["trans_info"] == [("resize", (90, 140))]
