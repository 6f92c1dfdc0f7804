"""Lookup tables of 8-bit images on the device, beside PaddleSeg's arithmetic on the host."""

import numpy as np
import paddle
import pytest
from paddleseg import transforms as paddleseg

from paddleseg_segformer.data.transforms import Normalize
from paddleseg_segformer.ops import ChannelTables


@pytest.mark.parametrize(
    "mean, std, bands",
    [
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 3),
        ([0.5], [0.5], 5),
        ([0.1, 0.2], [0.3], 2),
        ([0.3], [0.1], 1),
    ],
)
def test_each_value_of_each_channel_is_the_hosts(mean, std, bands):
    """To the last bit."""
    values = np.arange(256, dtype="float32")
    image = np.stack([np.roll(values, band) for band in range(bands)], -1).reshape([16, 16, bands])
    expected = paddleseg.Normalize(mean, std)({"img": image})["img"].transpose(2, 0, 1)
    tables = ChannelTables(Normalize(mean, std).table[0])
    images = paddle.to_tensor(image.transpose(2, 0, 1)[None].astype("uint8"))
    actual = tables(images, paddle.ones([1, 1, 1, 1], "int32")).numpy()[0]
    assert actual.dtype == expected.dtype and actual.tobytes() == expected.tobytes()


def test_what_is_not_valid_is_zero():
    images = paddle.full([2, 3, 4, 5], 7, "uint8")
    valid = paddle.to_tensor(np.arange(40).reshape([2, 1, 4, 5]) % 3 == 0).astype("int32")
    actual = ChannelTables(np.full([256, 3], -2, "float32"))(images, valid).numpy()
    expected = np.where(np.arange(40).reshape([2, 1, 4, 5]) % 3 == 0, np.float32(-2), 0)
    assert actual.tobytes() == np.broadcast_to(expected, actual.shape).astype("float32").tobytes()
