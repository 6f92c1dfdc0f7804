"""Test-time options from a config and from flags."""

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.inference import TestConfig

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


class Config:
    def __init__(self, **test_config):
        self.test_config = test_config


def test_options_are_paddlesegs():
    paper = TestConfig(scales=PAPER_SCALES, flip_horizontal=True)
    assert TestConfig.from_config(Config(), aug_eval=True) == paper
    assert TestConfig.from_config(Config(aug_eval=True)) == paper
    assert TestConfig.from_config(Config(scales=[0.5, 2], flip_horizontal=True)) == TestConfig()
    assert TestConfig.from_config(Config(), aug_eval=True, scales=2) == TestConfig(scales=(2,))
    flip_only = {"aug_eval": True, "flip_horizontal": True}  # a single scale, as in PaddleSeg
    assert TestConfig.from_config(Config(), **flip_only) == TestConfig(flip_horizontal=True)
    config = Config(is_slide=True, crop_size=[64, 32], stride=[48, 24])
    assert TestConfig.from_config(config) == TestConfig(crop_size=(64, 32), stride=(48, 24))
    assert TestConfig(flip_horizontal=True, flip_vertical=True).flips == [[], [3], [2], [3, 2]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aug_eval": True, "scales": [0.5, 0]}, "--scales"),
        ({"is_slide": True, "crop_size": [64, 64]}, "--stride"),
        ({"is_slide": True, "crop_size": [64, 64], "stride": [65, 64]}, "--stride"),
        ({"is_sliding": True}, "is_sliding"),
        ({"aug_eval": True, "scales": []}, "scales"),
        ({"aug_eval": True, "scales": "big"}, "scales"),
        ({"is_slide": True, "crop_size": 1024, "stride": [768, 768]}, "crop_size"),
        (
            {"is_slide": True, "crop_size": [64, 64.5], "stride": [9, 9]},
            "crop_size: must be 2 whole",
        ),
        ({"is_slide": True, "crop_size": [64, 1e400], "stride": [9, 9]}, "crop_size: must be 2 wh"),
        ({"aug_eval": "false"}, "test_config.aug_eval: must be true or false, not 'false'"),
        ({"is_slide": 1}, "test_config.is_slide: must be true or false, not 1"),
        ({"flip_vertical": "no"}, "test_config.flip_vertical: must be true or false, not 'no'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ps.InputError, match=message):
        TestConfig.from_config(Config(), **options)


DESCRIPTIONS = {
    "single scale, no flip, whole image": TestConfig(),
    "single scale, no flip, sliding window 64x32, stride 48x16": TestConfig(
        crop_size=(64, 32), stride=(48, 16)
    ),
    "2 scales (0.5, 1) + horizontal flip, mean softmax of 4 views, whole image": TestConfig(
        scales=(0.5, 1.0), flip_horizontal=True
    ),
    "scale 2 + horizontal and vertical flip, mean softmax of 4 views, whole image": TestConfig(
        scales=(2.0,), flip_horizontal=True, flip_vertical=True
    ),
}


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_description(text):
    assert DESCRIPTIONS[text].describe() == text
