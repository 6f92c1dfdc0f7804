"""What a configuration and its options say about how images are looked at."""

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.deploy import Protocol
from paddleseg_segformer.deploy.protocol import PAPER_SCALES


class Config:
    def __init__(self, **test_config):
        self.test_config = test_config


def test_options_are_paddlesegs():
    paper = Protocol(scales=PAPER_SCALES, flip_horizontal=True)
    assert Protocol.of_config(Config(), aug_eval=True) == paper
    assert Protocol.of_config(Config(aug_eval=True)) == paper
    assert Protocol.of_config(Config(scales=[0.5, 2], flip_horizontal=True)) == Protocol()
    assert Protocol.of_config(Config(), aug_eval=True, scales=2) == Protocol(scales=(2,))
    mirrored = {"aug_eval": True, "flip_horizontal": True}  # which to PaddleSeg is one scale
    assert Protocol.of_config(Config(), **mirrored) == Protocol(flip_horizontal=True)
    config = Config(is_slide=True, crop_size=[64, 32], stride=[48, 24])
    assert Protocol.of_config(config) == Protocol(crop_size=(64, 32), stride=(48, 24))
    assert Protocol(flip_horizontal=True, flip_vertical=True).flips == [[], [3], [2], [3, 2]]


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
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ps.InputError, match=message):
        Protocol.of_config(Config(), **options)
